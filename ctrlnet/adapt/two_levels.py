r"""The difference of a goal between a network and a refined one, as a sum over nodes and steps.

Let :math:`\tilde Y_k` be the states of the refined network, on a finer mesh, with divided steps or both, and
:math:`X_k` what this network has of them: their values at its nodes and times. They fail its own steps by

.. math:: \rho_k = \Phi_k(X_k) - X_{k+1}, \qquad e_0 = Y_0 - X_0,

the truncation errors. The states' difference :math:`e_k = Y_k - X_k` obeys
:math:`e_{k+1} = \Phi_k(Y_k) - \Phi_k(X_k) + \rho_k`, so that with the adjoint midway between both,
:math:`\mu_N = G'(\tfrac12(X_N + Y_N))` and :math:`\mu_k = \Phi_k'(\tfrac12(X_k + Y_k))^T \mu_{k+1}`,

.. math:: \tilde G - G = \bigl[\tilde G(\tilde Y_N) - G(X_N)\bigr] - \mu_0\cdot e_0
    - \sum_k \mu_{k+1}\cdot\rho_k + O(e^3),

a sum over nodes, steps and images: the goal's own part, the opening's (with that of the map of pixels), and the steps'.

Truncation errors are taken at the coarse nodes of fine states rather than at the fine nodes of prolonged ones, because
second differences of a linear interpolant do not converge: there they are zero between coarse nodes and twice too large
at them.

Sources: Becker and Rannacher, "An optimal control approach to a posteriori error estimation in finite element methods",
2001, for the adjoint weights and their third-order remainder; Brandt, "Multi-level adaptive solutions to boundary-value
problems", 1977, for the relative truncation error between two meshes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ctrlnet.adapt.goals import Ending, Goal
from ctrlnet.fields import NodalMap
from ctrlnet.kernels.sweep import Sweep, Trajectory
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk, chunk_size, chunks_of
from ctrlnet.objective.work import Work

__all__ = ["Difference", "Levels", "difference_of"]

Field = np.ndarray


@dataclass(frozen=True)
class Levels:
    """How a network's states are found among those of a refined one.

    Parameters
    ----------
    injected
        Fields at the refined network's nodes -> their values at this one's.
    gathered
        Numbers at the refined network's nodes, (owned,), -> their sums over this one's basis functions.
    ratio
        Steps of the refined network for one of this one's.
    """

    injected: Callable[[Field], Field]
    gathered: Callable[[np.ndarray], np.ndarray]
    ratio: int = 1


@dataclass(frozen=True)
class Difference:
    r"""The parts of :math:`\tilde G - G`.

    Parameters
    ----------
    steps
        (N, owned nodes).
    opening, ending
        (owned nodes,) each.
    coarse, fine
        G of both networks, the same on every rank.
    """

    steps: np.ndarray
    opening: np.ndarray
    ending: np.ndarray
    coarse: float
    fine: float

    @property
    def nodes(self) -> np.ndarray:
        """All parts, by node."""
        return self.steps.sum(axis=0) + self.opening + self.ending


def difference_of(coarse: Goal, fine: Goal, levels: Levels, memory_limit: int, work: Work) -> Difference:
    """Return the parts of the difference of a goal, streamed over the sample's images.

    Parameters
    ----------
    coarse, fine
        The same goal on the network and on the refined one.
    memory_limit
        Bytes for the states of a chunk of images.
    work
        Counts the sweeps.

    Raises
    ------
    PropagationError
        If a state of either is not finite.
    ValueError
        If the goal does not depend on the final states.
    """
    split, network = coarse.split, coarse.network
    block, size = network.sweep.image_block, chunk_size(fine.network.sweep, coarse.split)
    states = 3 * network.sweep.trajectory_bytes(network.steps, block) // block
    size = max(block, min(size, memory_limit // max(1, states) // block * block))
    chunks = chunks_of(split, split.comm.allreduce(size, op=MPI.MIN))
    both = _Level(coarse, chunks), _Level(fine, chunks)
    owned = network.operators.mass.size
    steps, opening, ending = np.zeros((network.steps, owned)), np.zeros(owned), np.zeros(owned)
    values, slope = np.zeros(2), 0.0
    for chunk in chunks:
        X, last = _states_seen(both[1], chunk, chunks[0].images, levels)
        trajectory = both[0].propagated(chunk, chunks[0].images)
        Y_last = trajectory.complete(network.steps)
        values += both[0].ending.value(chunk, Y_last[0]), both[1].ending.value(chunk, last)
        here, there = both[0].ending.shares(chunk, X[-1][0], both[1].ending, last)
        ending += levels.gathered(there) - here
        opened, slope_of_chunk = _swept_back(both[0], chunk, X, trajectory, steps)
        opening += opened
        slope = max(slope, slope_of_chunk)
    split.comm.Allreduce(MPI.IN_PLACE, values)
    if split.ensemble is not None:
        for array in (steps, opening, ending):
            split.ensemble.ensemble_comm.Allreduce(MPI.IN_PLACE, array)
    split.check_finite(float(values.sum() + steps.sum()), float(network.step_sizes.max()))
    if not split.comm.allreduce(slope, op=MPI.MAX) > 0:
        raise ValueError(
            "The goal depends on no final state: its derivative is zero, and so is every weight of an error. Take one "
            "that does; of classes, a classifier W that is not zero.")
    for level, kinds in zip(both, (("forward", "forward", "forward", "adjoint"), ("forward",)), strict=True):
        for kind in kinds:
            work.add(kind, split.count, level.network.operators.nodes, level.network.steps)
    return Difference(steps, opening, ending, *(float(v) for v in values))


class _Level:
    """A goal's network on one level with its chunks."""

    def __init__(self, goal: Goal, chunks: Sequence[Chunk]):
        self.network: Network = goal.network
        self.layers = goal.layers
        self.ending: Ending = goal.ending(chunks)
        self._inputs = goal.inputs
        self._map: NodalMap = goal.nodal_map()
        self.stages = len(self.layers.biases) // self.network.steps

    @property
    def sweep(self) -> Sweep:
        return self.network.sweep

    def open(self, chunk: Chunk, out: Field) -> None:
        x = self._map.nodal(self._inputs, chunk.start, chunk.stop)
        self.network.opening.open(self.layers, x, out)

    def propagated(self, chunk: Chunk, images: int) -> Trajectory:
        trajectory = self.sweep.trajectory(self.network.steps, self._padded(images))
        self.open(chunk, trajectory.initial)
        self.sweep.forward(self.layers.in_time, self.network.step_sizes, trajectory)
        return trajectory

    def _padded(self, images: int) -> int:
        block = self.sweep.image_block
        return -(-images // block) * block

    def pair(self, images: int) -> Trajectory:
        """Return storage for one step."""
        return self.sweep.trajectory(1, self._padded(images))

    def step(self, k: int, parts: Sequence[Field], pair: Trajectory) -> list[Field]:
        """Run step k from all parts of a state; return those of the next, which live in the pair."""
        for here, given in zip(pair.complete(0), parts, strict=True):
            here[:] = given
        h = self.network.step_sizes[k : k + 1]
        self.sweep.forward(self.layers.in_time.at_step(k, self.stages), h, pair)
        return pair.complete(1)


def _states_seen(fine: _Level, chunk: Chunk, images: int, levels: Levels) -> tuple[list[list[Field]], Field]:
    """Return what the coarse network has of the fine states, all parts at each of its times, and the last fine one."""
    pair = fine.pair(images)
    for part in pair.complete(0)[1:]:
        part[:] = 0.0
    fine.open(chunk, pair.initial)
    work = [part.copy() for part in pair.complete(0)]
    seen = [[levels.injected(part) for part in work]]
    for k in range(fine.network.steps):
        work = [part.copy() for part in fine.step(k, work, pair)]
        if (k + 1) % levels.ratio == 0:
            seen.append([levels.injected(part) for part in work])
    return seen, work[0]


def _swept_back(
    level: _Level, chunk: Chunk, X: list[list[Field]], trajectory: Trajectory, steps: np.ndarray
) -> tuple[np.ndarray, float]:
    """Add a chunk's part of every step, by node; return the opening's part, and the largest weight at the end."""
    pair = level.pair(trajectory.images)

    def midway(k: int) -> list[Field]:
        return [(x + y) / 2 for x, y in zip(X[k], trajectory.complete(k), strict=True)]

    lam = level.sweep.field(trajectory.images)
    level.ending.adjoint(chunk, midway(level.network.steps)[0], lam)
    slope = float(np.abs(lam).max(initial=0.0))
    adjoints: list[np.ndarray | None] = [lam, *[None] * (len(X[-1]) - 1)]
    for k in range(level.network.steps - 1, -1, -1):
        following = level.step(k, X[k], pair)
        steps[k] -= _weighted(adjoints, following, X[k + 1])
        level.step(k, midway(k), pair)
        level.sweep.adjoint_step(
            level.layers.in_time.at_step(k, level.stages), level.network.step_sizes[k : k + 1], pair, adjoints)
    return -_weighted(adjoints, trajectory.complete(0), X[0]), slope


def _weighted(adjoints: Sequence[np.ndarray | None], one: Sequence[Field], other: Sequence[Field]) -> np.ndarray:
    """Return the adjoints' products with the difference of two states, summed over features and images."""
    out = np.zeros(one[0].shape[0])
    for weight, a, b in zip(adjoints, one, other, strict=True):
        if weight is not None:
            out += np.einsum("nci,nci->n", weight, a.astype(float) - b)
    return out
