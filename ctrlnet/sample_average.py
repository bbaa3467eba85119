r"""The average loss over a sample, streamed through the network in chunks of images.

Each chunk is propagated by all ranks of the mesh together. Its features are then summed over ranks, and
each rank takes its share of the chunk's images for scores and losses. Trajectories are kept for the
adjoint as long as they fit the memory limit; beyond it they are recomputed, chunk by chunk or layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels import Trajectory, checkpointed_adjoint
from ctrlnet.losses import Loss, SoftmaxCrossEntropy
from ctrlnet.readout import Readout
from ctrlnet.sample import Sample
from ctrlnet.transfer.images import PixelProjection
from ctrlnet.work import Work

__all__ = ["Features", "PropagationError", "SampleAverage"]

_CHUNK_BYTES = 2**21
_OWN_FIELDS = 8
# The adjoint's gradient tiles want this many SIMD vectors of images, in cache or not.
_LEAST_VECTORS = 4


class PropagationError(ArithmeticError):
    """The propagation left the range of floating point numbers (NaN or infinity).

    An optimiser can shrink its step; a user can take more layers, a shorter time or smaller controls.
    """


@dataclass(frozen=True)
class Features:
    """Features of this rank's images: ``values`` (features, images), their labels and weights (1/n)."""

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class _Chunk:
    number: int
    start: int
    stop: int


class SampleAverage:
    r"""Mean over images of :math:`\ell(W^T F(s, b) + \beta,\; class)` with its derivatives.

    Coefficients are arrays: S (layers, J, C, C), b (layers, C), W (features, K), beta (K,). Every value and
    derivative returned is that of all ranks, the same on each.

    Parameters
    ----------
    readout
        The network and its readout.
    sample
        Images and classes; the pixels cover the mesh's bounding box.
    loss
        Loss of one image. Default: softmax cross-entropy.
    memory_limit
        Bytes a rank may use to keep states for the derivatives. Where the sample's trajectories do not fit,
        each chunk is propagated again; where one chunk's does not, its adjoint runs from a few stored states
        by a binomial checkpoint schedule. Tangents and Hessian products always hold one chunk's trajectory.
    work
        Counter of sweeps; shared between objects that are to be counted together.

    Raises
    ------
    ValueError
        If the sample has other classes than the readout, or its pixels do not fit the mesh's dimension.
    """

    def __init__(
        self, readout: Readout, sample: Sample, loss: Loss | None = None, memory_limit: int = 2**31,
        work: Work | None = None,
    ):
        if sample.classes != readout.classes:
            raise ValueError(
                f"The sample has {sample.classes} classes, the readout {readout.classes}; they must agree."
            )
        if memory_limit < 0:
            raise ValueError(f"memory_limit must not be negative, received {memory_limit!r} bytes.")
        self.readout = readout
        self.network = readout.network
        self.sample = sample
        self.loss = SoftmaxCrossEntropy() if loss is None else loss
        self.work = Work() if work is None else work
        self._projection = PixelProjection(self.network.space, sample.pixels)
        block = self.network.sweep.image_block
        bytes_an_image = self.network.sweep.field(block).nbytes // block
        fitting = max(1, _CHUNK_BYTES // max(1, bytes_an_image) // block)
        fitting = self.network.comm.allreduce(fitting, op=MPI.MIN)
        needed = -(-len(sample) // block)
        least = -(-_LEAST_VECTORS * self.network.sweep.lanes // block)
        self.chunk_images = block * min(max(fitting, least), max(8, least), max(needed, 1))
        count = -(-len(sample) // self.chunk_images)
        edges = [(k * self.chunk_images, min(len(sample), (k + 1) * self.chunk_images)) for k in range(count)]
        self._chunks = [_Chunk(k, *e) for k, e in enumerate(edges)]
        self._plan_memory(memory_limit)
        self._buffers: dict[int, Trajectory] = {}
        self._lifted: set[int] = set()
        self._kept_features: dict[int, np.ndarray] = {}
        self._lambdas: dict[int, np.ndarray] = {}
        self._point: tuple[np.ndarray, np.ndarray] | None = None

    def _plan_memory(self, limit: int) -> None:
        """Decide what is kept for the adjoint: all trajectories, one chunk's at a time, or a few of its states."""
        comm, sweep = self.network.comm, self.network.sweep
        chunk = comm.allreduce(sweep.trajectory_bytes(self.network.steps, self.chunk_images), op=MPI.MAX)
        state = comm.allreduce(sweep.trajectory_bytes(0, self.chunk_images), op=MPI.MAX)
        self.keeps_trajectories = chunk * len(self._chunks) <= limit
        # Besides the snapshots a checkpointed sweep holds some fields of its own.
        self.snapshots = None if chunk <= limit else max(1, limit // state - _OWN_FIELDS)

    # Chunks.

    @cached_property
    def _nodal(self) -> np.ndarray:
        """Nodal values of all images, (owned, n), in the sweep's precision."""
        out = np.empty((self.network.sweep.table.owned, len(self.sample)), dtype=self.network.sweep.dtype)
        for chunk in self._chunks:
            out[:, chunk.start : chunk.stop] = self._projection(self.sample.values(chunk.start, chunk.stop))
        return out

    def _share(self, count: int) -> slice:
        """This rank's share of the images of a chunk."""
        comm = self.network.comm
        return slice(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)

    def _trajectory(self, chunk: _Chunk, keep: bool) -> Trajectory:
        key = (chunk.number if self.keeps_trajectories else 0) if keep else -1
        if key not in self._buffers:
            self._buffers[key] = self.network.sweep.trajectory(self.network.steps, self.chunk_images, keep)
        return self._buffers[key]

    def _count(self, kind: str, chunk: _Chunk, layers: int | None = None) -> None:
        layers = self.network.steps if layers is None else layers
        self.work.add(kind, chunk.stop - chunk.start, self.network.operators.nodes, layers)

    def _propagate(self, chunk: _Chunk, S: np.ndarray, b: np.ndarray, keep: bool) -> tuple[Trajectory, np.ndarray]:
        trajectory = self._trajectory(chunk, keep)
        # A trajectory that is kept for one chunk alone keeps its initial state too.
        if not (keep and self.keeps_trajectories and chunk.number in self._lifted):
            self.network.lift_images(self._nodal[:, chunk.start : chunk.stop], trajectory.initial)
        if keep and self.keeps_trajectories:
            self._lifted.add(chunk.number)
        final = self.network.sweep.forward(S, b, self.network.step_sizes, trajectory)
        self._count("forward", chunk)
        return trajectory, final

    def _at(self, S: np.ndarray, b: np.ndarray) -> Iterator[tuple[_Chunk, Trajectory]]:
        """Yield every chunk with its trajectory at (S, b), kept from the last evaluation where possible."""
        known = (
            self.keeps_trajectories
            and self._point is not None
            and np.array_equal(S, self._point[0])
            and np.array_equal(b, self._point[1])
        )
        if not known:
            self._forget()
        for chunk in self._chunks:
            yield chunk, (self._trajectory(chunk, True) if known else self._propagate(chunk, S, b, True)[0])

    def _features(self, chunk: _Chunk, state: np.ndarray) -> np.ndarray:
        F = self.readout.restrict(state)[:, : chunk.stop - chunk.start]
        return np.asarray(F, dtype=float)

    def _final_features(self, chunk: _Chunk, state: np.ndarray) -> np.ndarray:
        """Return the features of a chunk at the remembered point, from the value's pass where they were kept."""
        kept = self._kept_features.get(chunk.number)
        return self._features(chunk, state) if kept is None else kept

    def _labels(self, chunk: _Chunk) -> tuple[slice, np.ndarray, np.ndarray]:
        mine = self._share(chunk.stop - chunk.start)
        labels = self.sample.labels[chunk.start : chunk.stop][mine]
        return mine, labels, np.full(labels.size, 1.0 / len(self.sample))

    def _all_images(self, dscores: np.ndarray, count: int) -> np.ndarray:
        """Return a score array of the whole chunk from the ranks' shares."""
        comm = self.network.comm
        return dscores if comm.size == 1 else np.concatenate(comm.allgather(dscores), axis=1)

    def _sum(self, *arrays: np.ndarray) -> None:
        for array in arrays:
            self.network.comm.Allreduce(MPI.IN_PLACE, array)

    def _forget(self) -> None:
        self._point = None
        self._kept_features.clear()

    def _remember(self, S: np.ndarray, b: np.ndarray) -> None:
        self._point = (S.copy(), b.copy())

    def _adjoint_state(
        self, dscores: np.ndarray, W: np.ndarray, extra: np.ndarray | None = None, which: int = 0
    ) -> np.ndarray:
        """Return lambda_N of a chunk from the scores' adjoint (K, images): the transposed readout.

        ``which`` numbers the buffer that it is written to.
        """
        if which not in self._lambdas:
            self._lambdas[which] = self.network.sweep.field(self.chunk_images)
        lam = self._lambdas[which]
        dF = np.zeros((W.shape[0], self.chunk_images))
        np.matmul(W, dscores, out=dF[:, : dscores.shape[1]])
        if extra is not None:
            dF[:, : dscores.shape[1]] += extra
        self.readout.restrict_adjoint(dF, lam)
        return lam

    # Values and derivatives.

    def features(self, S: np.ndarray, b: np.ndarray, keep: bool = True) -> Features:
        """Propagate the sample and return the features of this rank's images; trajectories are kept.

        Raises
        ------
        PropagationError
            If a state is not finite.
        """
        self._forget()
        parts = []
        for chunk in self._chunks:
            _, final = self._propagate(chunk, S, b, keep and self.snapshots is None)
            mine, labels, weights = self._labels(chunk)
            parts.append((self._features(chunk, final)[:, mine], labels, weights))
        if keep:
            self._remember(S, b)
        result = Features(np.concatenate([p[0] for p in parts], axis=1), *(
            np.concatenate([p[k] for p in parts]) for k in (1, 2)))
        self._check(np.abs(result.values).sum())
        return result

    def _check(self, number: float) -> None:
        if not self.network.comm.allreduce(bool(np.isfinite(number)), op=MPI.LAND):
            self._forget()
            raise PropagationError(
                "The propagation is not finite: the controls are too large for the explicit step "
                f"h = {self.network.step_sizes[0]:g}. Take more layers, a shorter time or smaller controls."
            )

    def value(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the average loss. Raises :class:`PropagationError` if it is not finite."""
        self._forget()
        total = 0.0
        for chunk in self._chunks:
            _, final = self._propagate(chunk, S, b, self.snapshots is None)
            mine, labels, weights = self._labels(chunk)
            F = self._features(chunk, final)
            if self.keeps_trajectories:
                self._kept_features[chunk.number] = F
            scores = W.T @ F[:, mine] + beta[:, None]
            total += self.loss.value(scores, labels, weights)
        self._check(total)
        self._remember(S, b)
        return self.network.comm.allreduce(total)

    def gradient(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray, with_weights: bool = True):
        """Return the derivatives with respect to S, b, W and beta (the last two None without weights)."""
        gS, gb, gW, gbeta = np.zeros(S.shape), np.zeros(b.shape), np.zeros(W.shape), np.zeros(beta.shape)

        def final_adjoint(chunk: _Chunk, final: np.ndarray) -> np.ndarray:
            F = self._final_features(chunk, final)
            mine, labels, weights = self._labels(chunk)
            dscores = self.loss.gradient(W.T @ F[:, mine] + beta[:, None], labels, weights)
            if with_weights:
                np.add(gW, F[:, mine] @ dscores.T, out=gW)
                np.add(gbeta, dscores.sum(axis=1), out=gbeta)
            return self._adjoint_state(self._all_images(dscores, F.shape[1]), W)

        for part_S, part_b in self._chunk_gradients(S, b, final_adjoint):
            gS += part_S
            gb += part_b
        self._sum(gS, gb, gW, gbeta)
        self._check(gS.sum() + gb.sum())
        return (gS, gb, gW, gbeta) if with_weights else (gS, gb, None, None)

    def _chunk_gradients(self, S: np.ndarray, b: np.ndarray, final_adjoint) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each chunk's derivative with respect to S and b, from kept, recomputed or checkpointed states."""
        h, sweep = self.network.step_sizes, self.network.sweep
        if self.snapshots is None:
            for chunk, trajectory in self._at(S, b):
                lam = final_adjoint(chunk, trajectory.states[-1, : trajectory.owned])
                self._count("adjoint", chunk)
                yield sweep.adjoint(S, h, trajectory, lam)
            return
        for chunk in self._chunks:
            initial = sweep.field(self.chunk_images)
            self.network.lift_images(self._nodal[:, chunk.start : chunk.stop], initial)
            gS, gb, _, layers = checkpointed_adjoint(
                sweep, S, b, h, initial, self.snapshots, partial(final_adjoint, chunk))
            self._count("forward", chunk, layers)
            self._count("adjoint", chunk)
            yield gS, gb

    def tangent(self, point, direction) -> float:
        """Return the derivative at ``point`` in ``direction``, both (S, b, W, beta)."""
        S, b, W, beta = point
        total = 0.0
        for chunk, trajectory in self._at(S, b):
            F, dF, _ = self._perturbed(chunk, trajectory, S, direction)
            mine, labels, weights = self._labels(chunk)
            scores, dscores = self._scores(F[:, mine], dF[:, mine], W, beta, direction)
            total += float((self.loss.gradient(scores, labels, weights) * dscores).sum())
        return self.network.comm.allreduce(total)

    def _perturbed(self, chunk, trajectory, S, direction):
        key = -2
        if key not in self._buffers:
            self._buffers[key] = self.network.sweep.trajectory(self.network.steps, self.chunk_images)
        tangent = self._buffers[key]
        tangent.initial[:] = 0.0
        dS, db = direction[:2]
        final = self.network.sweep.tangent(S, dS, db, self.network.step_sizes, trajectory, tangent)
        self._count("tangent", chunk)
        F = self._features(chunk, trajectory.states[-1, : trajectory.owned])
        return F, self._features(chunk, final), tangent

    @staticmethod
    def _scores(F, dF, W, beta, direction):
        _, _, dW, dbeta = direction
        return W.T @ F + beta[:, None], W.T @ dF + dW.T @ F + dbeta[:, None]

    def hessian(self, point, direction):
        """Return the Hessian at ``point`` times ``direction``, both and the result (S, b, W, beta)."""
        S, b, W, beta = point
        dS, _, dW, _ = direction
        hS, hb, hW, hbeta = np.zeros(S.shape), np.zeros(b.shape), np.zeros(W.shape), np.zeros(beta.shape)
        for chunk, trajectory in self._at(S, b):
            F, dF, tangent = self._perturbed(chunk, trajectory, S, direction)
            mine, labels, weights = self._labels(chunk)
            scores, change = self._scores(F[:, mine], dF[:, mine], W, beta, direction)
            g = self.loss.gradient(scores, labels, weights)
            dg = self.loss.hessian(scores, labels, weights, change)
            hW += F[:, mine] @ dg.T + dF[:, mine] @ g.T
            hbeta += dg.sum(axis=1)
            g, dg = (self._all_images(x, F.shape[1]) for x in (g, dg))
            lam, dlam = self._adjoint_state(g, W), self._adjoint_state(dg, W, dW @ g, which=1)
            part = self.network.sweep.second_order(S, dS, self.network.step_sizes, trajectory, tangent, lam, dlam)
            self._count("second_order", chunk)
            hS += part[0]
            hb += part[1]
        self._sum(hS, hb, hW, hbeta)
        return hS, hb, hW, hbeta

    def scores(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return the scores (K, n) of all images on every rank; not counted as training work."""
        parts = []
        for chunk in self._chunks:
            trajectory = self._trajectory(chunk, False)
            self.network.lift_images(self._nodal[:, chunk.start : chunk.stop], trajectory.initial)
            final = self.network.sweep.forward(S, b, self.network.step_sizes, trajectory)
            parts.append(W.T @ self._features(chunk, final) + beta[:, None])
        return np.concatenate(parts, axis=1)

    def accuracy(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the share of images whose largest score is that of their class."""
        return float((self.scores(S, b, W, beta).argmax(axis=0) == self.sample.labels).mean())
