r"""The average loss over a sample, streamed through the network in chunks of images.

Each chunk is propagated by all ranks of the mesh together. Its features are then summed over ranks, and
each rank takes its share of the chunk's images for scores and losses. An ensemble splits the images first:
each member has a copy of the mesh and its own chunks.
"""

from __future__ import annotations

import numpy as np
from firedrake import Ensemble
from mpi4py import MPI

from ctrlnet.fields.nodal import PixelMap, projection_to
from ctrlnet.fields.pixels import PixelProjection
from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import Average, FeatureReadout
from ctrlnet.objective.chunks import Chunk, chunk_size, chunks_of
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.linearisation import SampleLinearisation
from ctrlnet.objective.losses import Loss, SoftmaxCrossEntropy
from ctrlnet.objective.memory_plan import MemoryPlan
from ctrlnet.objective.trajectories import Storage, Trajectories
from ctrlnet.objective.work import Work

__all__ = ["SampleAverage"]


class SampleAverage(Average):
    r"""Mean over images of :math:`\ell(W^T F(u) + \beta,\; y)`, u the controls in time.

    Its values and derivatives are those of :meth:`at`.

    Parameters
    ----------
    readout
        The network and its readout.
    sample
        Images and classes; the pixels cover the mesh's bounding box.
    loss
        Loss of one image. Default: softmax cross-entropy.
    memory_limit
        Bytes a rank may use to keep states for the derivatives. Chunks whose trajectories do not fit are
        propagated again; where not even one chunk's fits, its adjoint runs from a few stored states by a
        binomial checkpoint schedule. Tangents and Hessian products always hold one chunk's trajectory.
    work
        Counter of sweeps; shared between objects that are to be counted together.
    ensemble
        A Firedrake ensemble whose members share the images out, each on a mesh of its own built with
        ``comm=ensemble.comm``. Every rank is given the whole sample. Default: the mesh's ranks have all images.
    projection
        Maps images to nodal values of the network's space. Default: :class:`~ctrlnet.transfer.PixelProjection`.
    storage
        That of an earlier average, used again where it fits this one's chunks; the states that it holds for the earlier
        average are lost to it as soon as this one propagates.

    Attributes
    ----------
    trajectories : Trajectories
        What is kept, recomputed and checkpointed, and the sample's chunks.

    Raises
    ------
    ValueError
        If the sample has other classes than the readout, its pixels do not fit the mesh's dimension, the mesh
        does not live on the ensemble's spatial communicator, or there are fewer images than members.
    """

    def __init__(
        self, readout: FeatureReadout, sample: Sample, loss: Loss | None = None, memory_limit: int = 2**30,
        work: Work | None = None, ensemble: Ensemble | None = None,
        projection: PixelProjection | PixelMap | None = None, storage: Storage | None = None,
    ):
        readout.check(sample)
        if memory_limit < 0:
            raise ValueError(f"memory_limit must not be negative, received {memory_limit!r} bytes.")
        self.readout = readout
        self.network = network = readout.network
        self.sample = sample
        self.loss = SoftmaxCrossEntropy() if loss is None else loss
        self.work = Work() if work is None else work
        self.memory_limit = memory_limit
        self.ensemble = ensemble
        self._split = split = ImageSplit(len(sample), network.comm, ensemble)
        self._projection = projection_to(network.space, sample.pixels, projection)
        self.chunk_images = chunk_size(network.sweep, split)
        chunks = chunks_of(sample.labels, split, self.chunk_images)
        self.plan = MemoryPlan.within(
            memory_limit, network.sweep, network.steps, self.chunk_images, len(chunks), self.comm)
        shape = network.sweep, network.steps, self.chunk_images
        if storage is None or not storage.fits(*shape):
            storage = Storage(*shape)
        self.storage = storage
        self.trajectories = Trajectories(
            network, chunks, split, sample, self._projection, self.plan, self.work, storage)

    @property
    def keeps_trajectories(self) -> bool:
        """Whether all trajectories are kept for the derivatives."""
        return self.plan.keeps_all

    @property
    def snapshots(self) -> int | None:
        return self.plan.snapshots

    @property
    def comm(self) -> MPI.Comm:
        return self._split.comm

    @property
    def relative_weights(self) -> np.ndarray:
        return np.ones(len(self.sample))

    @property
    def targets(self) -> np.ndarray:
        return self.sample.labels

    @property
    def nodal(self) -> list[np.ndarray]:
        """Nodal values of this member's images, (owned, images) of each chunk, in the sweep's precision."""
        return self.trajectories.nodal

    def at(self, layers: LayerControls) -> SampleLinearisation:
        return SampleLinearisation(layers, self.trajectories, self.readout, self.loss, self._split)

    def over(self, chosen: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        return SampleAverage(
            self.readout, self.sample.chosen(chosen), self.loss, self.memory_limit, self.work, self.ensemble,
            self._projection, None if replacing is None else replacing.storage)

    def among(self, terms: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        return self.over(terms, replacing)

    def scores(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        def of(chunk: Chunk, state: np.ndarray) -> np.ndarray:
            F = np.asarray(self.readout.restrict(state)[:, : chunk.stop - chunk.start], dtype=float)
            return W.T @ F + beta[:, None]

        parts = [of(*each) for each in self.trajectories.finals(layers)]
        return self._split.whole_sample(np.concatenate(parts, axis=1))

    def accuracy(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> float:
        return float(self.loss.agrees(self.scores(layers, W, beta), self.targets).mean())
