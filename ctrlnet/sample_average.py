r"""The average loss over a sample, streamed through the network in chunks of images.

Each chunk is propagated by all ranks of the mesh together. Its features are then summed over ranks, and
each rank takes its share of the chunk's images for scores and losses. An ensemble splits the images first:
each member has a copy of the mesh and its own chunks. Trajectories are kept for the adjoint as long as they fit
the memory limit; beyond it they are recomputed, chunk by chunk or layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np
from firedrake import Ensemble
from mpi4py import MPI

from ctrlnet.chunks import Chunk, Features, chunk_size, chunks_of
from ctrlnet.failures import PropagationError
from ctrlnet.image_split import ImageSplit
from ctrlnet.kernels import Trajectory, checkpointed_adjoint
from ctrlnet.losses import Loss, SoftmaxCrossEntropy
from ctrlnet.memory_plan import MemoryPlan
from ctrlnet.readout import Readout
from ctrlnet.sample import Sample
from ctrlnet.transfer.nodal import PixelMap, projection_to
from ctrlnet.work import Work

__all__ = ["Features", "PropagationError", "SampleAverage"]

# Trajectories beside those that are kept chunk by chunk: one that chunks share, one of two states, a tangent.
_SHARED, _UNKEPT, _TANGENT = -3, -1, -2


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
    replacing
        An average over images of the same shape, whose projection this one takes over, and with an equally large
        sample its storage: it is not to be used any more. For samples that are drawn again and again.

    Raises
    ------
    ValueError
        If the sample has other classes than the readout, its pixels do not fit the mesh's dimension, the mesh
        does not live on the ensemble's spatial communicator, or there are fewer images than members.
    """

    def __init__(
        self, readout: Readout, sample: Sample, loss: Loss | None = None, memory_limit: int = 2**30,
        work: Work | None = None, ensemble: Ensemble | None = None,
        projection: PixelMap | None = None, replacing: SampleAverage | None = None,
    ):
        if sample.classes != readout.classes:
            raise ValueError(
                f"The sample has {sample.classes} classes, the readout {readout.classes}; they must agree.")
        if memory_limit < 0:
            raise ValueError(f"memory_limit must not be negative, received {memory_limit!r} bytes.")
        self.readout = readout
        self.network = readout.network
        self.sample = sample
        self.loss = SoftmaxCrossEntropy() if loss is None else loss
        self.work = Work() if work is None else work
        self.split = split = ImageSplit(len(sample), self.network.comm, ensemble)
        if projection is None and replacing is not None:
            projection = replacing._projection
        self._projection = projection_to(self.network.space, sample.pixels, projection)
        self.chunk_images = chunk_size(self.network.sweep, split)
        self._chunks = chunks_of(sample, split, self.chunk_images)
        self.memory_limit = memory_limit
        self.plan = MemoryPlan.within(
            memory_limit, self.network.sweep, self.network.steps, self.chunk_images, len(self._chunks), self.comm)
        fits = replacing is not None and replacing.chunk_images == self.chunk_images
        self._buffers: dict[int, Trajectory] = replacing._buffers if fits else {}
        self._lifted: set[int] = set()
        self._features: np.ndarray | None = None  # at the remembered point, where all trajectories are kept
        self._lambdas: dict[int, np.ndarray] = {}
        self._point: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def keeps_trajectories(self) -> bool:
        """Whether all trajectories are kept for the derivatives."""
        return self.plan.keeps_all

    @property
    def snapshots(self) -> int | None:
        return self.plan.snapshots

    def _stays(self, chunk: Chunk) -> bool:
        return chunk.number < self.plan.kept

    @cached_property
    def _repropagated(self) -> int:
        """Images, of all members, that are propagated again for a derivative."""
        again = sum(c.stop - c.start for c in self._chunks if not self._stays(c))
        return again if self.ensemble is None else self.ensemble.ensemble_comm.allreduce(again)

    @property
    def comm(self) -> MPI.Comm:
        """All ranks: losses and derivatives are sums over them."""
        return self.split.comm

    @property
    def ensemble(self) -> Ensemble | None:
        return self.split.ensemble

    def over(self, chosen: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        """Return the average over the images of the given numbers, counted together with this one.

        ``replacing`` is an earlier subset that is done with; without it the pixels' projection alone is shared.
        """
        out = SampleAverage(
            self.readout, self.sample.chosen(chosen), self.loss, self.memory_limit, self.work, self.ensemble,
            replacing=self if replacing is None else replacing)
        if replacing is None:
            out._buffers = {}
        return out

    # Chunks.

    @cached_property
    def _nodal(self) -> list[np.ndarray]:
        """Nodal values of this member's images, (owned, images) of each chunk, in the sweep's precision."""
        dtype = self.network.sweep.dtype
        return [np.ascontiguousarray(self._projection(self.sample.values(c.start, c.stop)), dtype=dtype)
                for c in self._chunks]

    def _lift(self, chunk: Chunk, out: np.ndarray) -> None:
        """Write the initial state of a chunk."""
        self.network.lift_images(self._nodal[chunk.number], out)

    def _trajectory(self, chunk: Chunk, keep: bool) -> Trajectory:
        key = (chunk.number if self._stays(chunk) else _SHARED) if keep else _UNKEPT
        if key not in self._buffers:
            self._buffers[key] = self.network.sweep.trajectory(self.network.steps, self.chunk_images, keep)
        return self._buffers[key]

    def count(self, kind: str, layers: int | None = None, images: int | None = None) -> None:
        """Count a sweep over the sample, all members' images, or over part of it."""
        images = len(self.sample) if images is None else images
        layers = self.network.steps if layers is None else layers
        self.work.add(kind, images, self.network.operators.nodes, layers)

    def _at_start(self, chunk: Chunk, keep: bool) -> Trajectory:
        """Return the storage of a chunk's trajectory with the initial state in it."""
        trajectory = self._trajectory(chunk, keep)
        # A trajectory that is kept for one chunk alone keeps its initial state too.
        stays = keep and self._stays(chunk)
        if not (stays and chunk.number in self._lifted):
            self._lift(chunk, trajectory.initial)
        if stays:
            self._lifted.add(chunk.number)
        return trajectory

    def _propagate(self, chunk: Chunk, S: np.ndarray, b: np.ndarray, keep: bool) -> tuple[Trajectory, np.ndarray]:
        trajectory = self._at_start(chunk, keep)
        final = self.network.sweep.forward(S, b, self.network.step_sizes, trajectory)
        return trajectory, final

    def trajectories(self, S: np.ndarray, b: np.ndarray) -> Iterator[tuple[Chunk, Trajectory]]:
        """Yield every chunk with its trajectory at (S, b), kept from the last evaluation where possible."""
        known = self._knows(S, b)
        if not known:
            self._forget()
        self.count("forward", images=self._repropagated if known else len(self.sample))
        for chunk in self._chunks:
            stored = known and self._stays(chunk)
            yield chunk, (self._trajectory(chunk, True) if stored else self._propagate(chunk, S, b, True)[0])
        self.remember(S, b)

    def chunk_features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        F = self.readout.restrict(state)[:, : chunk.stop - chunk.start]
        return np.asarray(F, dtype=float)

    @cached_property
    def _own_images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, weights and numbers of all images of this rank."""
        return tuple(np.concatenate([getattr(chunk, what) for chunk in self._chunks])
                     for what in ("labels", "weights", "numbers"))

    def _knows(self, S: np.ndarray, b: np.ndarray) -> bool:
        return self._point is not None and all(map(np.array_equal, self._point, (S, b)))

    def _forget(self) -> None:
        self._point = self._features = None

    def remember(self, S: np.ndarray, b: np.ndarray) -> None:
        self._point = (S.copy(), b.copy())

    def adjoint_state(
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
        if keep and self._fused:
            self._forget()
            self.count("forward")
            starts, h = [self._at_start(chunk, True) for chunk in self._chunks], self.network.step_sizes
            values = self.network.sweep.forward_chunks(S, b, h, starts, self.readout.restriction)
            values = values[:, : self._own_images[0].size]
        else:
            values = np.concatenate(list(self._features_of_chunks(S, b, keep)), axis=1)
        self.check_finite(values.sum())
        if keep:
            self.remember(S, b)
            self._features = values if self.plan.keeps_all else None
        return Features(values, *self._own_images)

    @cached_property
    def _fused(self) -> bool:
        """Whether all chunks run in one call of the kernels, to their features and back."""
        return self.plan.keeps_all and self.network.sweep.fuses_chunks

    def _features_of_chunks(self, S: np.ndarray, b: np.ndarray, keep: bool) -> Iterator[np.ndarray]:
        """Propagate the sample; yield the features of this rank's images of each chunk."""
        self._forget()
        self.count("forward")
        for chunk in self._chunks:
            _, final = self._propagate(chunk, S, b, keep and self.snapshots is None)
            yield self.chunk_features(chunk, final)[:, chunk.mine]

    def check_finite(self, number: float) -> None:
        if not self.comm.allreduce(bool(np.isfinite(number)), op=MPI.LAND):
            self._forget()
            raise PropagationError(
                "The propagation is not finite: the controls are too large for the explicit step "
                f"h = {self.network.step_sizes[0]:g}. Take more layers, a shorter time or smaller controls."
            )

    def value(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the average loss. Raises :class:`PropagationError` if it is not finite."""
        if self.plan.keeps_all:
            scores = W.T @ self.features(S, b).values
        else:
            scores = np.concatenate([W.T @ F for F in self._features_of_chunks(S, b, True)], axis=1)
        total = self.loss.value(scores + beta[:, None], *self._own_images[:2])
        self.check_finite(total)
        self.remember(S, b)
        return self.comm.allreduce(total)

    def gradient(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray, with_weights: bool = True):
        """Return the derivatives with respect to S, b, W and beta (the last two None without weights)."""
        gS, gb, gW, gbeta = np.zeros(S.shape), np.zeros(b.shape), np.zeros(W.shape), np.zeros(beta.shape)
        known = self._features if self._knows(S, b) else None

        def scores_adjoint(chunk: Chunk, final: np.ndarray | None) -> np.ndarray:
            F = self.chunk_features(chunk, final)[:, chunk.mine] if known is None else known[:, chunk.own]
            dscores = self.loss.gradient(W.T @ F + beta[:, None], chunk.labels, chunk.weights)
            if with_weights:
                np.add(gW, F @ dscores.T, out=gW)
                np.add(gbeta, dscores.sum(axis=1), out=gbeta)
            return dscores

        def final_adjoint(chunk: Chunk, final: np.ndarray) -> np.ndarray:
            return self.adjoint_state(self.split.whole_chunk(scores_adjoint(chunk, final)), W)

        if known is not None and self._fused:
            self.count("adjoint")
            dscores = np.concatenate([scores_adjoint(chunk, None) for chunk in self._chunks], axis=1)
            kept = [self._trajectory(chunk, True) for chunk in self._chunks]
            gS, gb = self.network.sweep.adjoint_chunks(
                S, self.network.step_sizes, kept, self.readout.restriction_adjoint, W @ dscores)
        else:
            for part_S, part_b in self._chunk_gradients(S, b, final_adjoint):
                gS += part_S
                gb += part_b
        self.split.sum(gS, gb, gW, gbeta)
        self.check_finite(gS.sum() + gb.sum())
        return (gS, gb, gW, gbeta) if with_weights else (gS, gb, None, None)

    def _chunk_gradients(self, S: np.ndarray, b: np.ndarray, final_adjoint) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each chunk's derivative with respect to S and b, from kept, recomputed or checkpointed states."""
        h, sweep = self.network.step_sizes, self.network.sweep
        self.count("adjoint")
        if self.snapshots is None:
            for chunk, trajectory in self.trajectories(S, b):
                lam = final_adjoint(chunk, trajectory.states[-1, : trajectory.owned])
                yield sweep.adjoint(S, h, trajectory, lam)
            return
        layers = 0
        for chunk in self._chunks:
            initial = sweep.field(self.chunk_images)
            self._lift(chunk, initial)
            gS, gb, _, layers = checkpointed_adjoint(
                sweep, S, b, h, initial, self.snapshots, partial(final_adjoint, chunk))
            yield gS, gb
        self.count("forward", layers)

    def tangent(self, point, direction) -> float:
        """Return the derivative at ``point`` in ``direction``, both (S, b, W, beta)."""
        S, b, W, beta = point
        total = 0.0
        self.count("tangent")
        for chunk, trajectory in self.trajectories(S, b):
            F, dF, _ = self.perturbed(chunk, trajectory, S, direction)
            mine, labels, weights = chunk.mine, chunk.labels, chunk.weights
            scores, dscores = self.perturbed_scores(F[:, mine], dF[:, mine], W, beta, direction)
            total += float((self.loss.gradient(scores, labels, weights) * dscores).sum())
        return self.comm.allreduce(total)

    def perturbed(self, chunk, trajectory, S, direction):
        key = _TANGENT
        if key not in self._buffers:
            self._buffers[key] = self.network.sweep.trajectory(self.network.steps, self.chunk_images)
        tangent = self._buffers[key]
        tangent.initial[:] = 0.0
        dS, db = direction[:2]
        final = self.network.sweep.tangent(S, dS, db, self.network.step_sizes, trajectory, tangent)
        F = self.chunk_features(chunk, trajectory.states[-1, : trajectory.owned])
        return F, self.chunk_features(chunk, final), tangent

    @staticmethod
    def perturbed_scores(F, dF, W, beta, direction):
        _, _, dW, dbeta = direction
        return W.T @ F + beta[:, None], W.T @ dF + dW.T @ F + dbeta[:, None]

    def hessian(self, point, direction):
        """Return the Hessian at ``point`` times ``direction``, both and the result (S, b, W, beta)."""
        S, b, W, beta = point
        dS, _, dW, _ = direction
        self.count("tangent")
        self.count("second_order")
        hS, hb, hW, hbeta = np.zeros(S.shape), np.zeros(b.shape), np.zeros(W.shape), np.zeros(beta.shape)
        for chunk, trajectory in self.trajectories(S, b):
            F, dF, tangent = self.perturbed(chunk, trajectory, S, direction)
            mine, labels, weights = chunk.mine, chunk.labels, chunk.weights
            scores, change = self.perturbed_scores(F[:, mine], dF[:, mine], W, beta, direction)
            g = self.loss.gradient(scores, labels, weights)
            dg = self.loss.hessian(scores, labels, weights, change)
            hW += F[:, mine] @ dg.T + dF[:, mine] @ g.T
            hbeta += dg.sum(axis=1)
            g, dg = self.split.whole_chunk(g), self.split.whole_chunk(dg)
            lam, dlam = self.adjoint_state(g, W), self.adjoint_state(dg, W, dW @ g, which=1)
            part = self.network.sweep.second_order(S, dS, self.network.step_sizes, trajectory, tangent, lam, dlam)
            hS += part[0]
            hb += part[1]
        self.split.sum(hS, hb, hW, hbeta)
        return hS, hb, hW, hbeta

    def scores(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return the scores (K, n) of all images on every rank; not counted as training work."""
        parts = []
        for chunk in self._chunks:
            trajectory = self._trajectory(chunk, False)
            self._lift(chunk, trajectory.initial)
            final = self.network.sweep.forward(S, b, self.network.step_sizes, trajectory)
            parts.append(W.T @ self.chunk_features(chunk, final) + beta[:, None])
        return self.split.whole_sample(np.concatenate(parts, axis=1))

    def accuracy(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the share of images whose largest score is that of their class."""
        return float((self.scores(S, b, W, beta).argmax(axis=0) == self.sample.labels).mean())
