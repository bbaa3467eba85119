r"""A sample average at fixed controls in time: values, derivatives and products from what was propagated there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import ImageSweep, Trajectory
from ctrlnet.network.network import Network
from ctrlnet.objective.average import ImageRows, Linearisation
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import Columns, Features, ImageTerms, ReadInKernels, Terms
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.point import Point
from ctrlnet.objective.trajectories import Mark, Trajectories

__all__ = ["SampleLinearisation"]


@dataclass(frozen=True)
class _Scored:
    """This rank's columns of a chunk, their scores and the change of these along a direction."""

    chunk: Chunk
    terms: Terms
    trajectory: Trajectory
    features: np.ndarray
    change_of_features: np.ndarray
    scores: np.ndarray
    change: np.ndarray

    @property
    def at(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arguments of the loss's derivatives."""
        return self.scores, self.terms.targets, self.terms.weights


class SampleLinearisation(Linearisation):
    """The :class:`~ctrlnet.objective.average.Linearisation` of a :class:`~ctrlnet.SampleAverage`.

    Parameters
    ----------
    layers
        The controls in time.
    trajectories, columns, loss, split
        Of the average.
    """

    def __init__(
        self, layers: LayerControls, trajectories: Trajectories, columns: Columns, loss: Loss, split: ImageSplit
    ):
        self.layers = layers
        self._trajectories, self._columns, self._loss, self._split = trajectories, columns, loss, split
        self._mark = Mark()
        self._features: Features | None = None  # held where all trajectories are

    @property
    def _network(self) -> Network:
        return self._trajectories.network

    @property
    def _together(self) -> ReadInKernels | None:
        """The readout as kernels take it, where all chunks run in one call of theirs."""
        return self._columns.in_kernels if self._trajectories.together else None

    @property
    def count(self) -> int:
        """Images of the sample."""
        return self._split.count

    # Features.

    def features(self, keep: bool = True) -> Features:
        if self._features is not None:
            return self._features
        walk, columns, terms = self._trajectories, self._columns, self._columns.all_terms()
        if keep and self._together is not None:
            values = walk.propagate_together(self.layers, self._mark, self._together.forward)
            values = values[:, : terms.weights.size]
        else:
            parts = [columns.features(*each) for each in walk.propagate(self.layers, self._mark, keep)]
            values = np.concatenate(parts, axis=1)
        self._trajectories.check_finite(values.sum())
        out = Features(values, terms)
        if keep and walk.plan.keeps_all:
            self._features = out
        return out

    # Values and derivatives.

    def value(self, W: np.ndarray, beta: np.ndarray) -> float:
        walk, columns = self._trajectories, self._columns
        if walk.plan.keeps_all:
            values = self.features().values
            parts = ((chunk, values[:, columns.own(chunk)]) for chunk in walk.chunks)
        else:  # the features of a large sample are not held
            parts = ((each[0], columns.features(*each)) for each in walk.propagate(self.layers, self._mark))
        total = 0.0
        for chunk, F in parts:
            terms = columns.terms(chunk)
            total += self._loss.value(W.T @ F + beta[:, None], terms.targets, terms.weights)
        self._trajectories.check_finite(total)
        return self._split.comm.allreduce(total)

    def gradient(self, W: np.ndarray, beta: np.ndarray) -> Point:
        gW, gbeta = np.zeros(W.shape), np.zeros(beta.shape)

        def add(F: np.ndarray, dscores: np.ndarray) -> None:
            np.add(gW, F @ dscores.T, out=gW)
            np.add(gbeta, dscores.sum(axis=1), out=gbeta)

        layers = self._gradient(W, beta, add)
        self._split.sum(gW, gbeta)
        return Point(layers, gW, gbeta)

    def layers_gradient(self, W: np.ndarray, beta: np.ndarray) -> LayerControls:
        return self._gradient(W, beta, lambda F, dscores: None)

    def _gradient(
        self, W: np.ndarray, beta: np.ndarray, seen: Callable[[np.ndarray, np.ndarray], None]
    ) -> LayerControls:
        """Return the controls' part; ``seen`` is handed the features and the scores' adjoint of every chunk."""
        walk = self._trajectories
        columns = self._columns
        known = self._features if walk.holds(self._mark) else None
        walk.count("adjoint")

        def scores_adjoint(chunk: Chunk, final: np.ndarray | None) -> np.ndarray:
            F = columns.features(chunk, final) if known is None else known.values[:, columns.own(chunk)]
            terms = columns.terms(chunk)
            dscores = self._loss.gradient(W.T @ F + beta[:, None], terms.targets, terms.weights)
            seen(F, dscores)
            return dscores

        if known is not None and self._together is not None:
            dscores = np.concatenate([scores_adjoint(chunk, None) for chunk in walk.chunks], axis=1)
            out = walk.adjoint_together(self.layers, self._together.adjoint, W @ dscores)
        else:
            out = walk.adjoint(
                self.layers, self._mark,
                lambda chunk, final: self._final_adjoint(chunk, (W, scores_adjoint(chunk, final))))
        self._split.sum(*out.arrays)
        self._trajectories.check_finite(sum(a.sum() for a in out.arrays))
        return out

    def _final_adjoint(self, chunk: Chunk, *pairs: tuple[np.ndarray, np.ndarray], number: int = 0) -> np.ndarray:
        """Return lambda_N of a chunk from this rank's part of the scores' adjoint: see :meth:`Columns.pull`."""
        lam = self._trajectories.storage.adjoint(number)
        self._columns.pull(chunk, lam, *pairs)
        return lam

    def _scored(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Iterator[_Scored]:
        """Propagate a direction along every chunk's trajectory; the tangent is left in the storage."""
        network, walk = self._network, self._trajectories
        walk.count("tangent")
        tangent = walk.storage.tangent
        for chunk, trajectory in walk.visit(self.layers, self._mark):
            network.opening.open_tangent(direction.layers, walk.inputs[chunk], tangent.initial)
            final = network.sweep.tangent(
                self.layers.in_time, direction.layers.in_time, network.step_sizes, trajectory, tangent)
            F, dF = (self._columns.features(chunk, state) for state in (trajectory.final, final))
            change = W.T @ dF + direction.W.T @ F + direction.beta[:, None]
            terms = self._columns.terms(chunk)
            yield _Scored(chunk, terms, trajectory, F, dF, W.T @ F + beta[:, None], change)

    def tangent(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> float:
        total = sum(float((self._loss.gradient(*each.at) * each.change).sum())
                    for each in self._scored(W, beta, direction))
        return self._split.comm.allreduce(total)

    def hessian(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        network, walk = self._network, self._trajectories
        walk.count("second_order")
        out = Point(self.layers, W, beta).zeros()
        for each in self._scored(W, beta, direction):
            g, dg = self._loss.gradient(*each.at), self._loss.hessian(*each.at, each.change)
            np.add(out.W, each.features @ dg.T + each.change_of_features @ g.T, out=out.W)
            np.add(out.beta, dg.sum(axis=1), out=out.beta)
            lam = self._final_adjoint(each.chunk, (W, g))
            dlam = self._final_adjoint(each.chunk, (W, dg), (direction.W, g), number=1)
            out.layers.in_time.add(network.sweep.second_order(
                self.layers.in_time, direction.layers.in_time, network.step_sizes, each.trajectory,
                walk.storage.tangent, lam, dlam))
            network.opening.pull(dlam, walk.inputs[each.chunk], out.layers)
        self._split.sum(*out.arrays)
        return out

    def gauss_newton(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        self._trajectories.count("adjoint")
        out = Point(self.layers, W, beta).zeros()
        for each in self._scored(W, beta, direction):
            dg = self._loss.hessian(*each.at, each.change)
            self._pull_back(W, each, dg, out.layers)
            np.add(out.W, each.features @ dg.T, out=out.W)
            np.add(out.beta, dg.sum(axis=1), out=out.beta)
        self._split.sum(*out.arrays)
        self._trajectories.check_finite(sum(float(a.sum()) for a in out.arrays))
        return out

    def _pull_back(self, W: np.ndarray, at: _Scored, dscores: np.ndarray, total: LayerControls) -> None:
        """Add one chunk's derivative from this rank's part of the scores' adjoint."""
        lam = self._final_adjoint(at.chunk, (W, dscores))
        self._trajectories.pulled_back(self.layers, at.chunk, at.trajectory, lam, total)

    def coupling(
        self, W: np.ndarray, beta: np.ndarray, direction: LayerControls
    ) -> tuple[np.ndarray, Callable[[np.ndarray], LayerControls]]:
        seen: list[_Scored] = []
        mixed = np.zeros((W.shape[0] + 1, W.shape[1]))
        for each in self._scored(W, beta, Point.in_layers(direction, W, beta)):
            dg = self._loss.hessian(*each.at, each.change)
            mixed[:-1] += each.features @ dg.T
            mixed[-1] += dg.sum(axis=1)
            seen.append(each)
        self._split.sum(mixed)

        def complete(reaction: np.ndarray) -> LayerControls:
            self._trajectories.count("adjoint")
            out = self.layers.zeros()
            visited = self._trajectories.visit(self.layers, self._mark)
            for (_, trajectory), each in zip(visited, seen, strict=True):
                change = each.change + reaction[:-1].T @ each.features + reaction[-1][:, None]
                again = replace(each, trajectory=trajectory)
                self._pull_back(W, again, self._loss.hessian(*each.at, change), out)
            self._split.sum(*out.arrays)
            self._trajectories.check_finite(sum(float(a.sum()) for a in out.arrays))
            return out

        return mixed, complete

    @property
    def imagewise(self) -> ImageRows | None:
        sweep, terms = self._network.sweep.imagewise, self._columns.by_image
        return None if sweep is None or terms is None else _Rows(self, sweep, terms)


class _Rows(ImageRows):
    """Each image's own derivative by the sweep that gives it."""

    def __init__(self, at: SampleLinearisation, sweep: ImageSweep, terms: ImageTerms):
        self._at, self._sweep, self._terms = at, sweep, terms

    @property
    def targets(self) -> np.ndarray:
        return self._terms.targets

    @property
    def weights(self) -> np.ndarray:
        return self._terms.weights

    def features(self) -> np.ndarray:
        at = self._at
        parts = [self._terms.all_features(chunk, trajectory.final)
                 for chunk, trajectory in at._trajectories.visit(at.layers, at._mark)]
        return at._split.whole_sample(np.concatenate(parts, axis=1))

    def rows(self, W: np.ndarray, dscores: np.ndarray) -> LayerControls:
        at, parts = self._at, []
        at._trajectories.count("adjoint")
        for chunk, trajectory in at._trajectories.visit(at.layers, at._mark):
            lam = at._trajectories.storage.adjoint()
            self._terms.pull_all(lam, W @ dscores[:, chunk.start : chunk.stop])
            in_time = self._sweep.adjoint_each(at.layers.in_time, at._network.step_sizes, trajectory, lam)
            opening = at._network.opening.pull_each(lam, at._trajectories.inputs[chunk])
            parts.append([a[..., : chunk.images] for a in (*in_time.arrays, *opening)])
        return at.layers.of(*(self._of_all(np.concatenate(column, axis=-1)) for column in zip(*parts, strict=True)))

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """Return an array (..., images) of all images, summed over the mesh's ranks, from this member's part."""
        comm = self._at._network.comm
        if comm.size > 1:
            comm.Allreduce(MPI.IN_PLACE, rows)
        shape = rows.shape[:-1]
        whole = self._at._split.whole_sample(rows.reshape(math.prod(shape), rows.shape[-1]))
        return whole.reshape(*shape, whole.shape[-1])
