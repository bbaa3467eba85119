"""Sweeps of any step that knows its derivatives: forward, adjoint, tangent and second order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from ctrlnet.kernels.code.arrays import aligned_zeros
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import MOST_BLOCKS
from ctrlnet.operators.stencil_table import StencilTable

__all__ = ["StateFields", "StepRun", "StepSweep", "StepTrajectory"]


@dataclass(frozen=True)
class StepTrajectory:
    """States of all parts of a system at every step, (layers + 1, nodes with ghosts, C, images) each.

    The first part is what images start and the readout sees; the others start at zero. Without keeping there are two
    states.
    """

    parts: list[np.ndarray]
    owned: int

    @property
    def initial(self) -> np.ndarray:
        """Owned rows of the first part at time 0, a view."""
        return self.parts[0][0, : self.owned]

    @property
    def final(self) -> np.ndarray:
        """Owned rows of the first part of the last state, a view; where all states are kept."""
        return self.parts[0][-1, : self.owned]

    @property
    def images(self) -> int:
        return self.parts[0].shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    def complete(self, k: int) -> list[np.ndarray]:
        """Return the owned rows of all parts of state k, views."""
        return [p[k, : self.owned] for p in self.parts]


@dataclass(frozen=True)
class StateFields:
    """The fields that a state has on one mesh.

    Parameters
    ----------
    table
        Rows of the network's operators: which nodes this rank owns.
    nodes
        Rows with ghosts.
    parts, features
        Fields of a state, features of each.
    dtype, image_block
        Of their numbers; images come in multiples of the block.
    most_blocks
        Of a chunk.
    """

    table: StencilTable
    nodes: int
    parts: int
    features: int
    dtype: np.dtype
    image_block: int
    most_blocks: int = MOST_BLOCKS

    @property
    def owned(self) -> int:
        return self.table.owned

    def zeros(self, rows: int, images: int) -> np.ndarray:
        """Return a zero field (rows, C, images)."""
        return aligned_zeros((rows, self.features, images), self.dtype)


class StepRun(Protocol):
    r"""One step :math:`Y_{k+1} = \Phi(Y_k; u, h)` of a chunk. A state is the list of its parts, None where one is zero.

    Attributes
    ----------
    solvers
        Of the step's implicit stages, by number, with the iterations they took; empty if it has none.
    """

    @property
    def solvers(self) -> Mapping[int, Any]: ...

    def at(self, controls: LayerControls, h: float) -> Self:
        """Set the step's controls, a row a stage, and its size."""

    def evaluate(self, inputs: list[np.ndarray], following: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Return the state after the step; ``following`` is that state, if known, for a first guess of stages."""

    def tangent(self, inputs: list, direction: LayerControls) -> list:
        """Return the change of the state after the step, at the last inputs, along a change of inputs and controls."""

    def adjoint(self, outputs: list, total: LayerControls) -> list:
        """Return the adjoints of the inputs and add those of the controls to a total."""

    def second_order(
        self, outputs: list, output_changes: list, direction: LayerControls, total: LayerControls
    ) -> tuple[list, list]:
        """Return the adjoints of the inputs and their changes along the last tangent; add those of the controls."""


class StepSweep:
    r"""A step :math:`Y_{k+1} = \Phi(Y_k; u, h)` of any kind: a :class:`~ctrlnet.kernels.sweep.Sweep`.

    Between the steps only states are kept; the derivatives run a step again to have the rest, and are sums over a
    chunk's images.

    Parameters
    ----------
    fields
        Of a state.
    stages
        Rows of the controls that a step takes.
    make_run
        Number of images -> the step for a chunk of so many.
    """

    chunkwise = None
    imagewise = None

    def __init__(self, fields: StateFields, stages: int, make_run: Callable[[int], StepRun]):
        self.fields, self.stages = fields, stages
        self.table, self.features, self.dtype = fields.table, fields.features, fields.dtype
        self.image_block, self.most_blocks = fields.image_block, fields.most_blocks
        self._make_run = make_run
        self._runs: dict[int, StepRun] = {}

    def _run(self, images: int) -> StepRun:
        if images not in self._runs:
            self._runs[images] = self._make_run(images)
        return self._runs[images]

    def solver_iterations(self) -> tuple[list[int], list[int]]:
        """Return Newton's iterations of each stage solved so far, and Krylov's of each of those; empty if explicit."""
        stages = [stage for run in self._runs.values() for stage in run.solvers.values()]
        return sum((s.newton_iterations for s in stages), []), sum((s.krylov_iterations for s in stages), [])

    def trajectory(self, layers: int, images: int, keep: bool = True) -> StepTrajectory:
        """Return zeroed storage for a sweep over ``images`` images."""
        if images % self.image_block:
            raise ValueError(f"A chunk must hold a multiple of {self.image_block} images, received {images}.")
        rows, nodes = layers + 1 if keep else 2, self.fields.nodes
        parts = [self.fields.zeros(rows * nodes, images) for _ in range(self.fields.parts)]
        return StepTrajectory([p.reshape(rows, nodes, self.features, images) for p in parts], self.fields.owned)

    def trajectory_bytes(self, layers: int, images: int) -> int:
        """Return the size of a trajectory with every state kept."""
        rows = self.fields.parts * self.fields.nodes * (layers + 1)
        return rows * self.features * images * self.dtype.itemsize

    def field(self, images: int, ghosts: bool = False) -> np.ndarray:
        """Return a zero field of a chunk."""
        return self.fields.zeros(self.fields.nodes if ghosts else self.fields.owned, images)

    def _states(self, trajectory: StepTrajectory, k: int) -> list[np.ndarray]:
        return [p[k % len(p)] for p in trajectory.parts]

    def forward(self, controls: LayerControls, h: np.ndarray, trajectory: StepTrajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; see :meth:`Sweep.forward`."""
        run, owned = self._run(trajectory.images), self.fields.owned
        for k in range(len(h)):
            run.at(controls.at_step(k, self.stages), h[k])
            results = run.evaluate(self._states(trajectory, k))
            for state, result in zip(self._states(trajectory, k + 1), results, strict=True):
                state[:owned] = result[:owned]
        if len(h) >= len(trajectory.parts[0]):  # the start was overwritten: the next sweep's velocities are zero again
            for part in trajectory.parts[1:]:
                part[0] = 0
        return self._states(trajectory, len(h))[0][:owned]

    def _again(self, controls: LayerControls, h: float, states: list, following: list, images: int) -> StepRun:
        """Run a step again, to have its values."""
        run = self._run(images).at(controls, h)
        run.evaluate(states, following)
        return run

    def _layer(self, controls: LayerControls, h: np.ndarray, trajectory: StepTrajectory, k: int) -> StepRun:
        """Return the run of step k, with the values of the forward sweep."""
        return self._again(
            controls.at_step(k, self.stages), h[k], self._states(trajectory, k), self._states(trajectory, k + 1),
            trajectory.images)

    def _lifted(self, lam: np.ndarray, hidden: list) -> list:
        """Return adjoints of all parts as fields with ghost rows, from the first part's owned rows."""
        whole = self.field(lam.shape[-1], ghosts=True)
        whole[: self.fields.owned] = lam
        return [whole, *hidden]

    def _lowered(self, adjoints: list, lam: np.ndarray) -> list:
        """Write the first part's adjoint to ``lam``; return copies of all, whose buffers the next step overwrites."""
        lam[:] = 0 if adjoints[0] is None else adjoints[0][: self.fields.owned]
        return [None if a is None else a.copy() for a in adjoints]

    def adjoint(
        self, controls: LayerControls, h: np.ndarray, trajectory: StepTrajectory, lam: np.ndarray
    ) -> LayerControls:
        """Run the transposed sweep; see :meth:`Sweep.adjoint`."""
        out = controls.zeros()
        adjoints = self._lifted(lam, [None] * (self.fields.parts - 1))
        for k in reversed(range(len(h))):
            run = self._layer(controls, h, trajectory, k)
            adjoints = self._lowered(run.adjoint(adjoints, out.at_step(k, self.stages)), lam)
        return out

    def adjoint_step(
        self, controls: LayerControls, h: np.ndarray, pair: StepTrajectory, adjoints: list[np.ndarray | None]
    ) -> LayerControls:
        """Run the adjoint of one step; see :meth:`Sweep.adjoint_step`."""
        out, (lam, *hidden) = controls.zeros(), adjoints
        run = self._layer(controls, h, pair, 0)
        adjoints[1:] = self._lowered(run.adjoint(self._lifted(lam, hidden), out), lam)[1:]
        return out

    def tangent(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: StepTrajectory,
        tangent: StepTrajectory,
    ) -> np.ndarray:
        """Propagate a perturbation along a trajectory; see :meth:`Sweep.tangent`."""
        owned = self.fields.owned
        for k in range(len(h)):
            run = self._layer(controls, h, trajectory, k)
            changes = run.tangent(self._states(tangent, k), direction.at_step(k, self.stages))
            for state, change in zip(self._states(tangent, k + 1), changes, strict=True):
                state[:owned] = 0 if change is None else change[:owned]
        return self._states(tangent, len(h))[0][:owned]

    def second_order(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: StepTrajectory,
        tangent: StepTrajectory, lam: np.ndarray, dlam: np.ndarray,
    ) -> LayerControls:
        """Differentiate the adjoint sweep along a tangent; see :meth:`Sweep.second_order`."""
        out = controls.zeros()
        hidden = [None] * (self.fields.parts - 1)
        adjoints, changes = self._lifted(lam, hidden), self._lifted(dlam, hidden)
        for k in reversed(range(len(h))):
            run, along = self._layer(controls, h, trajectory, k), direction.at_step(k, self.stages)
            run.tangent(self._states(tangent, k), along)
            adjoints, changes = run.second_order(adjoints, changes, along, out.at_step(k, self.stages))
            adjoints, changes = self._lowered(adjoints, lam), self._lowered(changes, dlam)
        return out
