r"""What is kept, recomputed and checkpointed of the states that derivatives need.

Trajectories of a sample's chunks are kept as long as they fit the memory limit; beyond it they are recomputed, chunk by
chunk or, where not even one chunk's fits, layer by layer from a few stored states. The storage says whose states it
holds: each propagation leaves the mark of the controls it ran with, so that no trajectory serves others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from ctrlnet.errors import PropagationError
from ctrlnet.kernels.checkpointing import checkpointed_adjoint
from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import Sweep, Trajectory
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.memory_plan import MemoryPlan
from ctrlnet.objective.nodal_inputs import NodalInputs
from ctrlnet.objective.work import Work

__all__ = ["Mark", "Storage", "Trajectories"]


class Mark:
    """Stands for the controls that something was propagated with; its identity is all there is to it."""


class Storage:
    """Room for trajectories of chunks of equally many images on one network, made at first use.

    Samples that are drawn again and again pass it on.

    Parameters
    ----------
    sweep
        Makes the storage.
    layers
        Of a trajectory.
    images
        Of a chunk.

    Attributes
    ----------
    states_of : Mark or None
        Whose states the kept trajectories are.
    images_of : dict
        The mark of those whose images are the initial states of a kept chunk, by its number.
    """

    def __init__(self, sweep: Sweep, layers: int, images: int):
        self.images = images
        self._sweep, self._layers = sweep, layers
        self._kept: dict[int, Trajectory] = {}
        self._adjoints: dict[int, np.ndarray] = {}
        self.states_of: Mark | None = None
        self.images_of: dict[int, Mark] = {}

    def fits(self, sweep: Sweep, layers: int, images: int) -> bool:
        """Whether this is storage for such trajectories."""
        return self._sweep is sweep and (self._layers, self.images) == (layers, images)

    def kept(self, number: int) -> Trajectory:
        """Return the trajectory that is kept for a chunk."""
        if number not in self._kept:
            self._kept[number] = self._sweep.trajectory(self._layers, self.images)
        return self._kept[number]

    @cached_property
    def shared(self) -> Trajectory:
        """A trajectory that the chunks without one of their own share."""
        return self._sweep.trajectory(self._layers, self.images)

    @cached_property
    def passing(self) -> Trajectory:
        """A trajectory of which no state is kept but the last."""
        return self._sweep.trajectory(self._layers, self.images, keep=False)

    @cached_property
    def tangent(self) -> Trajectory:
        return self._sweep.trajectory(self._layers, self.images)

    def adjoint(self, number: int = 0) -> np.ndarray:
        """Return one of the fields for adjoint states."""
        if number not in self._adjoints:
            self._adjoints[number] = self._sweep.field(self.images)
        return self._adjoints[number]

    @property
    def sizes(self) -> list[int]:
        """Bytes of every trajectory that was made."""
        made = (vars(self).get(name) for name in ("shared", "passing", "tangent"))
        return [t.nbytes for t in (*self._kept.values(), *made) if t is not None]


class Trajectories:
    """The chunks of one sample, propagated with one set of controls at a time.

    Parameters
    ----------
    network
        Propagates.
    chunks
        Of this ensemble member's images.
    split
        Who has which images.
    inputs
        Nodal values of the images.
    plan
        What is kept.
    work
        Counter of sweeps.
    storage
        Where it is kept.
    """

    def __init__(
        self, network: Network, chunks: Sequence[Chunk], split: ImageSplit, inputs: NodalInputs, plan: MemoryPlan,
        work: Work, storage: Storage,
    ):
        self.network, self.chunks, self.plan, self.storage = network, list(chunks), plan, storage
        self.inputs, self._split, self._work = inputs, split, work
        self._mark = Mark()  # of the images, for the initial states

    @property
    def _opens_once(self) -> bool:
        """Whether initial states depend on no control."""
        return not self.network.opening.control_set.names

    @property
    def together(self) -> bool:
        """Whether all chunks run in one call of the kernels, to their features and back.

        A learned opening needs each chunk's adjoint at time 0, which such a call does not give.
        """
        return self._opens_once and self.plan.keeps_all and self.network.sweep.chunkwise is not None

    @cached_property
    def _repropagated(self) -> int:
        """Images, of all members, that are propagated again for a derivative."""
        again = sum(c.stop - c.start for c in self.chunks if not self._stays(c))
        ensemble = self._split.ensemble
        return again if ensemble is None else ensemble.ensemble_comm.allreduce(again)

    def _stays(self, chunk: Chunk) -> bool:
        return chunk.number < self.plan.kept

    def count(self, kind: str, layers: int | None = None, images: int | None = None) -> None:
        """Count a sweep over the sample, all members' images, or over part of it."""
        images = self._split.count if images is None else images
        layers = self.network.steps if layers is None else layers
        self._work.add(kind, images, self.network.operators.nodes, layers)

    def holds(self, mark: Mark) -> bool:
        """Whether the storage has the states of the controls of this mark."""
        return self.storage.states_of is mark

    def forget(self) -> None:
        self.storage.states_of = None

    # Forward.

    def started(self, layers: LayerControls, chunk: Chunk, keep: bool = True) -> Trajectory:
        """Return the storage of a chunk's trajectory with the initial state in it."""
        storage = self.storage
        stays = keep and self._stays(chunk)
        if stays:
            trajectory = storage.kept(chunk.number)
            if self._opens_once and storage.images_of.get(chunk.number) is self._mark:
                return trajectory  # one that is kept keeps its initial state too
            storage.images_of[chunk.number] = self._mark
        else:
            trajectory = storage.shared if keep else storage.passing
        self.network.opening.open(layers, self.inputs[chunk], trajectory.initial)
        return trajectory

    def _propagated(self, layers: LayerControls, chunk: Chunk, keep: bool) -> tuple[Trajectory, np.ndarray]:
        trajectory = self.started(layers, chunk, keep)
        return trajectory, self.network.sweep.forward(layers.in_time, self.network.step_sizes, trajectory)

    def propagate(self, layers: LayerControls, mark: Mark, keep: bool = True) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Propagate the sample anew; yield every chunk with its final state, which the next one may overwrite."""
        self.forget()
        self.count("forward")
        keep = keep and self.plan.snapshots is None
        for chunk in self.chunks:
            yield chunk, self._propagated(layers, chunk, keep)[1]
        self.storage.states_of = mark if keep else None

    def propagate_together(self, layers: LayerControls, mark: Mark, readout: RowProduct) -> np.ndarray:
        """Propagate all chunks in one call; return their features (features, padded images)."""
        self.forget()
        self.count("forward")
        starts = [self.started(layers, chunk) for chunk in self.chunks]
        features = self.network.sweep.chunkwise.forward_chunks(
            layers.in_time, self.network.step_sizes, starts, readout)
        self.storage.states_of = mark
        return features

    def finals(self, layers: LayerControls) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Yield every chunk with its final state; no trajectory is kept or lost, and nothing is counted."""
        for chunk in self.chunks:
            yield chunk, self._propagated(layers, chunk, False)[1]

    def visit(self, layers: LayerControls, mark: Mark) -> Iterator[tuple[Chunk, Trajectory]]:
        """Yield every chunk with its trajectory, kept from the last propagation where it was with these controls."""
        known = self.holds(mark)
        if not known:
            self.forget()
        self.count("forward", images=self._repropagated if known else None)
        for chunk in self.chunks:
            stored = known and self._stays(chunk)
            yield chunk, (self.storage.kept(chunk.number) if stored else self._propagated(layers, chunk, True)[0])
        self.storage.states_of = mark

    def check_finite(self, number: float) -> None:
        """Raise a :class:`~ctrlnet.PropagationError` on all ranks, and forget the states, if a number is not finite."""
        try:
            self._split.check_finite(number, self.network.step_sizes.max())
        except PropagationError:
            self.forget()
            raise

    # Backward.

    def adjoint_together(self, layers: LayerControls, readout: RowProduct, dfeatures: np.ndarray) -> LayerControls:
        """Run the adjoint of all chunks from that of their features in one call; this rank's part."""
        kept = [self.storage.kept(chunk.number) for chunk in self.chunks]
        return self.network.sweep.chunkwise.adjoint_chunks(
            layers.in_time, self.network.step_sizes, kept, readout, dfeatures)

    def pulled_back(
        self, layers: LayerControls, chunk: Chunk, trajectory: Trajectory, lam: np.ndarray, total: LayerControls
    ) -> None:
        r"""Add the derivative of one chunk from :math:`\lambda_N`, which is overwritten by :math:`\lambda_0`."""
        total.in_time.add(self.network.sweep.adjoint(layers.in_time, self.network.step_sizes, trajectory, lam))
        self.network.opening.pull(lam, self.inputs[chunk], total)

    def adjoint(
        self, layers: LayerControls, mark: Mark, final_adjoint: Callable[[Chunk, np.ndarray], np.ndarray]
    ) -> LayerControls:
        r"""Return this rank's part of the derivative, from kept, recomputed or checkpointed states.

        Parameters
        ----------
        final_adjoint
            Maps a chunk and its final state to :math:`\lambda_N`, which is overwritten.
        """
        h, sweep, total = self.network.step_sizes, self.network.sweep, layers.zeros()
        if self.plan.snapshots is None:
            for chunk, trajectory in self.visit(layers, mark):
                self.pulled_back(layers, chunk, trajectory, final_adjoint(chunk, trajectory.final), total)
            return total
        propagated = 0
        for chunk in self.chunks:
            initial = sweep.field(self.storage.images)
            self.network.opening.open(layers, self.inputs[chunk], initial)
            part, lam, propagated = checkpointed_adjoint(
                sweep, layers.in_time, h, initial, self.plan.snapshots, partial(final_adjoint, chunk))
            total.in_time.add(part)
            self.network.opening.pull(lam, self.inputs[chunk], total)
        self.count("forward", propagated)
        return total
