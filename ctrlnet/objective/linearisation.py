r"""A sample average at fixed controls in time: values, derivatives and products from what was propagated there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import ImageSweep, Trajectory
from ctrlnet.network.network import Network
from ctrlnet.objective.average import FeatureReadout, ImageRows, Linearisation
from ctrlnet.objective.chunks import Chunk, Features
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.point import Point
from ctrlnet.objective.trajectories import Mark, Trajectories

__all__ = ["SampleLinearisation"]


@dataclass(frozen=True)
class _Scored:
    """This rank's images of a chunk, their scores and the change of these along a direction."""

    chunk: Chunk
    trajectory: Trajectory
    features: np.ndarray
    change_of_features: np.ndarray
    scores: np.ndarray
    change: np.ndarray

    @property
    def at(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arguments of the loss's derivatives."""
        return self.scores, self.chunk.targets, self.chunk.weights


class SampleLinearisation(Linearisation):
    """The :class:`~ctrlnet.objective.average.Linearisation` of a :class:`~ctrlnet.SampleAverage`.

    Parameters
    ----------
    layers
        The controls in time.
    trajectories, readout, loss, split
        Of the average.
    """

    def __init__(
        self, layers: LayerControls, trajectories: Trajectories, readout: FeatureReadout, loss: Loss, split: ImageSplit
    ):
        self.layers = layers
        self._trajectories, self._readout, self._loss, self._split = trajectories, readout, loss, split
        self._mark = Mark()
        self._features: Features | None = None  # held where all trajectories are

    @property
    def _network(self) -> Network:
        return self._trajectories.network

    @property
    def count(self) -> int:
        """Images of the sample."""
        return self._split.count

    # Features.

    def _restricted(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return np.asarray(self._readout.restrict(state)[:, : chunk.stop - chunk.start], dtype=float)

    def _own(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return self._restricted(chunk, state)[:, chunk.mine]

    def features(self, keep: bool = True) -> Features:
        if self._features is not None:
            return self._features
        walk, images = self._trajectories, Features.of_chunks(self._trajectories.chunks)
        if keep and walk.together:
            values = walk.propagate_together(self.layers, self._mark, self._readout.restriction)
            values = values[:, : images.weights.size]
        else:
            parts = [self._own(*each) for each in walk.propagate(self.layers, self._mark, keep)]
            values = np.concatenate(parts, axis=1)
        self._trajectories.check_finite(values.sum())
        out = images.with_values(values)
        if keep and walk.plan.keeps_all:
            self._features = out
        return out

    def whole_features(self) -> np.ndarray:
        parts = [self._restricted(chunk, trajectory.final)
                 for chunk, trajectory in self._trajectories.visit(self.layers, self._mark)]
        return self._split.whole_sample(np.concatenate(parts, axis=1))

    # Values and derivatives.

    def value(self, W: np.ndarray, beta: np.ndarray) -> float:
        walk = self._trajectories
        if walk.plan.keeps_all:
            images = self.features()
            scores = W.T @ images.values
        else:  # the features of a large sample are not held
            images = Features.of_chunks(walk.chunks)
            parts = [W.T @ self._own(*each) for each in walk.propagate(self.layers, self._mark)]
            scores = np.concatenate(parts, axis=1)
        total = self._loss.value(scores + beta[:, None], images.targets, images.weights)
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
        known = self._features if walk.holds(self._mark) else None
        walk.count("adjoint")

        def scores_adjoint(chunk: Chunk, final: np.ndarray | None) -> np.ndarray:
            F = self._own(chunk, final) if known is None else known.values[:, chunk.own]
            dscores = self._loss.gradient(W.T @ F + beta[:, None], chunk.targets, chunk.weights)
            seen(F, dscores)
            return dscores

        if known is not None and walk.together:
            dscores = np.concatenate([scores_adjoint(chunk, None) for chunk in walk.chunks], axis=1)
            out = walk.adjoint_together(self.layers, self._readout.restriction_adjoint, W @ dscores)
        else:
            out = walk.adjoint(
                self.layers, self._mark, lambda chunk, final: self._final_adjoint(W, scores_adjoint(chunk, final)))
        self._split.sum(*out.arrays)
        self._trajectories.check_finite(sum(a.sum() for a in out.arrays))
        return out

    def _final_adjoint(self, W: np.ndarray, dscores: np.ndarray) -> np.ndarray:
        """Return lambda_N of a chunk from this rank's part of the scores' adjoint."""
        return self._adjoint_state(W @ self._split.whole_chunk(dscores))

    def _adjoint_state(self, dfeatures: np.ndarray, number: int = 0) -> np.ndarray:
        """Return lambda_N of a chunk from the features' adjoint (features, images): the transposed readout."""
        storage = self._trajectories.storage
        lam, dF = storage.adjoint(number), np.zeros((dfeatures.shape[0], storage.images))
        dF[:, : dfeatures.shape[1]] = dfeatures
        self._readout.restrict_adjoint(dF, lam)
        return lam

    def _scored(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Iterator[_Scored]:
        """Propagate a direction along every chunk's trajectory; the tangent is left in the storage."""
        network, walk = self._network, self._trajectories
        walk.count("tangent")
        tangent = walk.storage.tangent
        for chunk, trajectory in walk.visit(self.layers, self._mark):
            tangent.initial[:] = 0.0
            final = network.sweep.tangent(self.layers, direction.layers, network.step_sizes, trajectory, tangent)
            F, dF = self._own(chunk, trajectory.final), self._own(chunk, final)
            change = W.T @ dF + direction.W.T @ F + direction.beta[:, None]
            yield _Scored(chunk, trajectory, F, dF, W.T @ F + beta[:, None], change)

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
            g, dg = self._split.whole_chunk(g), self._split.whole_chunk(dg)
            lam, dlam = self._adjoint_state(W @ g), self._adjoint_state(W @ dg + direction.W @ g, 1)
            out.layers.add(network.sweep.second_order(
                self.layers, direction.layers, network.step_sizes, each.trajectory, walk.storage.tangent, lam, dlam))
        self._split.sum(*out.arrays)
        return out

    def gauss_newton(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        self._trajectories.count("adjoint")
        out = Point(self.layers, W, beta).zeros()
        for each in self._scored(W, beta, direction):
            dg = self._loss.hessian(*each.at, each.change)
            out.layers.add(self._pulled(W, each.trajectory, dg))
            np.add(out.W, each.features @ dg.T, out=out.W)
            np.add(out.beta, dg.sum(axis=1), out=out.beta)
        self._split.sum(*out.arrays)
        self._trajectories.check_finite(sum(float(a.sum()) for a in out.arrays))
        return out

    def _pulled(self, W: np.ndarray, trajectory: Trajectory, dscores: np.ndarray) -> LayerControls:
        """Return one chunk's derivative from this rank's part of the scores' adjoint."""
        network = self._network
        return network.sweep.adjoint(self.layers, network.step_sizes, trajectory, self._final_adjoint(W, dscores))

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
            again = self._trajectories.visit(self.layers, self._mark)
            for (_, trajectory), each in zip(again, seen, strict=True):
                change = each.change + reaction[:-1].T @ each.features + reaction[-1][:, None]
                out.add(self._pulled(W, trajectory, self._loss.hessian(*each.at, change)))
            self._split.sum(*out.arrays)
            self._trajectories.check_finite(sum(float(a.sum()) for a in out.arrays))
            return out

        return mixed, complete

    @property
    def imagewise(self) -> ImageRows | None:
        sweep = self._network.sweep.imagewise
        return None if sweep is None else _Rows(self, sweep)


class _Rows(ImageRows):
    """Each image's own derivative by the sweep that gives it."""

    def __init__(self, at: SampleLinearisation, sweep: ImageSweep):
        self._at, self._sweep = at, sweep

    def rows(self, W: np.ndarray, dscores: np.ndarray) -> LayerControls:
        at, parts = self._at, []
        at._trajectories.count("adjoint")
        for chunk, trajectory in at._trajectories.visit(at.layers, at._mark):
            lam = at._adjoint_state(W @ dscores[:, chunk.start : chunk.stop])
            part = self._sweep.adjoint_each(at.layers, at._network.step_sizes, trajectory, lam)
            parts.append([a[..., : chunk.stop - chunk.start] for a in part.arrays])
        return LayerControls(*(self._of_all(np.concatenate(column, axis=-1)) for column in zip(*parts, strict=True)))

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """Return an array (..., images) of all images, summed over the mesh's ranks, from this member's part."""
        comm = self._at._network.comm
        if comm.size > 1:
            comm.Allreduce(MPI.IN_PLACE, rows)
        shape = rows.shape[:-1]
        whole = self._at._split.whole_sample(rows.reshape(math.prod(shape), rows.shape[-1]))
        return whole.reshape(*shape, whole.shape[-1])
