"""Sweeps of any step that knows its derivatives: forward, adjoint, tangent and second order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctrlnet.kernels.operations import Run
from ctrlnet.kernels.stencil_table import StencilTable
from ctrlnet.kernels.sweep import FusedSweep, Trajectory, aligned_zeros

__all__ = ["StateFields", "StepSweep", "StepTrajectory"]


class StepTrajectory(Trajectory):
    """States of all parts of a system at every step, (layers + 1, nodes with ghosts, C, images) each.

    ``states`` are those of the first part, which images start and the readout sees; the others start at zero.
    """

    def __init__(self, parts: list[np.ndarray], owned: int):
        super().__init__(parts[0], None, owned)
        self.parts = parts
        self.biases: np.ndarray | None = None  # of the last forward sweep: the derivatives run its steps again
        self.hidden: list = [None] * (len(parts) - 1)  # adjoints of the other parts between single layers

    def complete(self, k: int) -> list[np.ndarray]:
        """Owned rows of all parts of state k, views."""
        return [p[k, : self.owned] for p in self.parts]

    nbytes = property(lambda self: sum(p.nbytes for p in self.parts))


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
    most_blocks: int = FusedSweep.most_blocks

    @property
    def owned(self) -> int:
        return self.table.owned

    def zeros(self, rows: int, images: int) -> np.ndarray:
        """Return a zero field (rows, C, images)."""
        return aligned_zeros((rows, self.features, images), self.dtype)


class StepSweep:
    r"""A step :math:`Y_{k+1} = \Phi(Y_k; s, b, h)` of any kind, with the interface of :class:`FusedSweep`.

    Controls are arrays S (layers * stages, J, C, C) and b (layers * stages, C): a scheme may take them at several
    times in a step. Between the steps only states are kept; the derivatives run a step again to have the rest.

    Parameters
    ----------
    fields
        Of a state.
    stages
        Rows of S and b that a step takes.
    make_run
        Number of images -> the step for a chunk of so many, with the methods of
        :class:`~ctrlnet.kernels.operations.Run`.
    """

    image_derivatives = False  # derivatives are sums over a chunk's images
    fuses_chunks = False

    def __init__(self, fields: StateFields, stages: int, make_run: Callable[[int], Run]):
        self.fields, self.stages = fields, stages
        self.table, self.features, self.dtype = fields.table, fields.features, fields.dtype
        self.image_block, self.most_blocks = fields.image_block, fields.most_blocks
        self._make_run = make_run
        self._runs: dict[int, Run] = {}

    def _run(self, images: int) -> Run:
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

    def _controls(self, array: np.ndarray, k: int) -> np.ndarray:
        return array[k * self.stages : (k + 1) * self.stages]

    def _states(self, trajectory: StepTrajectory, k: int) -> list[np.ndarray]:
        return [p[k % len(p)] for p in trajectory.parts]

    def forward(self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectory: StepTrajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; return the owned rows of the final state's first part, a view."""
        run, owned = self._run(trajectory.images), self.fields.owned
        trajectory.biases = b.copy()
        for k in range(len(h)):
            run.at(self._controls(S, k), self._controls(b, k), h[k])
            results = run.evaluate(self._states(trajectory, k))
            for state, result in zip(self._states(trajectory, k + 1), results, strict=True):
                state[:owned] = result[:owned]
        if len(h) >= len(trajectory.states):  # the start was overwritten: the next sweep's velocities are zero again
            for part in trajectory.parts[1:]:
                part[0] = 0
        return self._states(trajectory, len(h))[0][:owned]

    def _again(self, S: np.ndarray, b: np.ndarray, h: float, states: list, following: list, images: int) -> Run:
        """Run a step again, to have its values."""
        run = self._run(images).at(S, b, h)
        run.evaluate(states, following)
        return run

    def _layers(self, S, h, trajectory: StepTrajectory):
        """Yield the steps backwards: number, rows of its controls, and its run with the values of the forward sweep."""
        for k in reversed(range(len(h))):
            rows = slice(k * self.stages, (k + 1) * self.stages)
            yield k, rows, self._again(
                S[rows], trajectory.biases[rows], h[k], self._states(trajectory, k), self._states(trajectory, k + 1),
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
        self, S: np.ndarray, h: np.ndarray, trajectory: StepTrajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Run the transposed sweep from :math:`\lambda_N` (``lam``, overwritten by :math:`\lambda_0`).

        Returns
        -------
        gS, gb
            This rank's part of the derivatives with respect to S and b.
        """
        gS, gb = np.zeros(S.shape), np.zeros((len(S), self.features))
        adjoints = self._lifted(lam, [None] * (self.fields.parts - 1))
        for _, rows, run in self._layers(S, h, trajectory):
            adjoints = self._lowered(run.adjoint(adjoints, gS[rows], gb[rows]), lam)
        return gS, gb

    def adjoint_layer(
        self, S: np.ndarray, h: np.ndarray, pair: StepTrajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the adjoint of one step of several that follow; see :meth:`FusedSweep.adjoint_layer`."""
        gS, gb = np.zeros(S.shape), np.zeros((len(S), self.features))
        states = [[p[k] for p in pair.parts] for k in (0, 1)]
        run = self._again(S, pair.biases, h[0], *states, pair.images)
        pair.hidden = self._lowered(run.adjoint(self._lifted(lam, pair.hidden), gS, gb), lam)[1:]
        return gS, gb

    def tangent(
        self, S: np.ndarray, dS: np.ndarray, db: np.ndarray, h: np.ndarray, trajectory: StepTrajectory,
        tangent: StepTrajectory,
    ) -> np.ndarray:
        """Propagate a perturbation of (S, b, Y_0) along a trajectory; ``tangent.initial`` holds that of Y_0."""
        run, owned = self._run(trajectory.images), self.fields.owned
        for k in range(len(h)):
            rows = slice(k * self.stages, (k + 1) * self.stages)
            self._again(
                S[rows], trajectory.biases[rows], h[k], self._states(trajectory, k), self._states(trajectory, k + 1),
                trajectory.images)
            changes = run.tangent(self._states(tangent, k), dS[rows], db[rows])
            for state, change in zip(self._states(tangent, k + 1), changes, strict=True):
                state[:owned] = 0 if change is None else change[:owned]
        tangent.direction = (dS.copy(), db.copy())
        return self._states(tangent, len(h))[0][:owned]

    def second_order(
        self, S: np.ndarray, dS: np.ndarray, h: np.ndarray, trajectory: StepTrajectory, tangent: StepTrajectory,
        lam: np.ndarray, dlam: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Differentiate the adjoint sweep along a tangent; see :meth:`FusedSweep.second_order`."""
        gS, gb = np.zeros(S.shape), np.zeros((len(S), self.features))
        hidden = [None] * (self.fields.parts - 1)
        adjoints, changes = self._lifted(lam, hidden), self._lifted(dlam, hidden)
        _, db = tangent.direction
        for k, rows, run in self._layers(S, h, trajectory):
            run.tangent(self._states(tangent, k), dS[rows], db[rows])
            adjoints, changes = run.second_order(adjoints, changes, dS[rows], gS[rows], gb[rows])
            adjoints, changes = self._lowered(adjoints, lam), self._lowered(changes, dlam)
        return gS, gb
