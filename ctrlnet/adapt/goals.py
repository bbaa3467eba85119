r"""What an error is measured in: functionals G of a sample's final states, the same on any mesh.

The objective's mean loss is one, :class:`MeanLoss`; so is the mean of any loss of one's own, for instance the gap
between the scores of two classes, :class:`ScoreGap`; and so is the mean of an integral of the states, as UFL,
:class:`StateIntegral`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from firedrake import (
    Cofunction,
    Function,
    SpatialCoordinate,
    TestFunction,
    VectorFunctionSpace,
    assemble,
    derivative,
    dx,
)
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint.tape import no_annotations
from ufl.algorithms import expand_derivatives
from ufl.core.expr import Expr

from ctrlnet.controls import ControlsLike
from ctrlnet.errors import NotPickled
from ctrlnet.fields import Inputs, NodalMap, Sample
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.network.network import Network
from ctrlnet.objective import Loss, TrainingProblem
from ctrlnet.objective.average import FeatureReadout
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import Columns
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.nodal_inputs import nodal_map_for

__all__ = ["Ending", "Goal", "MeanLoss", "ScoreGap", "StateIntegral"]


class Ending(Protocol):
    """A goal on one mesh, as a function of the final states of chunks. Sums over ranks are the caller's."""

    def value(self, chunk: Chunk, state: np.ndarray) -> float:
        """Return this rank's part of what a chunk's final state, (owned, C, images or more), adds to G."""

    def adjoint(self, chunk: Chunk, state: np.ndarray, lam: np.ndarray) -> None:
        """Write G' at a chunk's final state, (owned, C, images or more), zero beyond the images."""

    def shares(
        self, chunk: Chunk, state: np.ndarray, other: Any, other_state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what nodes here and on another mesh have in the difference of G there and here, (owned nodes,) each.

        ``other`` is the ending of the same goal there. The difference of the sums is that of G to the third power of
        the difference of what G depends on.
        """


class Goal(Protocol):
    r"""A functional of a sample's final states, :math:`G(Y_1(T), \dots, Y_n(T))`, with the controls that lead to them.

    Attributes
    ----------
    network, inputs, split
        The discrete map, the sample's inputs, and who has which images.
    m
        The controls.
    layers
        The controls as the network's steps take them.
    """

    @property
    def m(self) -> ControlsLike: ...

    @property
    def network(self) -> Network: ...

    @property
    def inputs(self) -> Inputs: ...

    @property
    def split(self) -> ImageSplit: ...

    @property
    def layers(self) -> LayerControls: ...

    def nodal_map(self) -> NodalMap:
        """Return the map of inputs to the nodes of the network's space. Collective."""

    def on(self, network: Network) -> Goal:
        """Return the same functional of the states of another network, with the same controls."""

    def ending(self, chunks: Sequence[Chunk]) -> Ending:
        """Return the functional of the final states of these chunks."""


class MeanLoss(NotPickled):
    r"""The mean loss of a sample's scores, :math:`\sum_c w_c\,\ell(W^T F_c + \beta, y_c)`, a class or anything else.

    The regularisation belongs to no mesh: the error of the mean loss is that of the whole objective.

    Parameters
    ----------
    readout
        With the network.
    sample
        Inputs and targets.
    m
        All controls, (s, b, ..., W, beta).
    loss
        As a :class:`~ctrlnet.TrainingProblem` takes it.
    split
        Who has which images; default: the mesh's ranks all of them.
    projection
        Maps inputs to nodal values of the network's space. Default, and on other meshes: the inputs' own.
    """

    def __init__(
        self, readout: FeatureReadout, sample: Sample, m: ControlsLike, loss: Loss, split: ImageSplit | None = None,
        projection: NodalMap | None = None,
    ):
        self.readout, self.sample, self.m, self.loss = readout, sample, m, loss
        self.split = ImageSplit(len(sample), readout.network.comm) if split is None else split
        self.layers = readout.network.layers(m)
        self._W, self._beta = readout.arrays_of(readout.control_set.arrays(m))
        self._projection = projection

    @classmethod
    def of(cls, problem: TrainingProblem, m: ControlsLike) -> MeanLoss:
        """Return the mean loss of a training problem."""
        average = problem.average
        split = ImageSplit(len(average.sample), problem.network.comm, average.ensemble)
        return cls(problem.readout, average.sample, problem.control_set.controls(m), average.loss, split,
                   problem.projection)

    @property
    def network(self) -> Network:
        return self.readout.network

    @property
    def inputs(self) -> Inputs:
        return self.sample.inputs

    def nodal_map(self) -> NodalMap:
        return nodal_map_for(self.network, self.inputs, self._projection)

    def on(self, network: Network) -> MeanLoss:
        same = network.space == self.network.space
        return MeanLoss(
            self.readout.on(network), self.sample, self.m, self.loss, self.split, self._projection if same else None)

    def ending(self, chunks: Sequence[Chunk]) -> _ScoresEnding:
        columns = self.readout.columns(self.sample, chunks, self.split, 0)
        self.loss.check(columns.terms(chunks[0]).targets)
        return _ScoresEnding(columns, self.loss, self._W, self._beta)


class _ScoresEnding:
    def __init__(self, columns: Columns, loss: Loss, W: np.ndarray, beta: np.ndarray):
        self._columns, self._loss, self._W, self._beta = columns, loss, W, beta

    def _scores(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return self._W.T @ self._columns.features(chunk, state) + self._beta[:, None]

    def value(self, chunk: Chunk, state: np.ndarray) -> float:
        terms = self._columns.terms(chunk)
        return self._loss.value(self._scores(chunk, state), terms.targets, terms.weights)

    def adjoint(self, chunk: Chunk, state: np.ndarray, lam: np.ndarray) -> None:
        terms = self._columns.terms(chunk)
        g = self._loss.gradient(self._scores(chunk, state), terms.targets, terms.weights)
        self._columns.pull(chunk, lam, (self._W, g))

    def shares(
        self, chunk: Chunk, state: np.ndarray, other: _ScoresEnding, other_state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._columns.shares(
            chunk, state, other._columns, other_state, self._loss, self._W, self._beta)


@dataclass(frozen=True)
class ScoreGap(Loss):
    """The difference of two scores, :math:`c_a - c_b`, in place of a loss: what tells two classes apart.

    As the loss of a :class:`MeanLoss` of some images it makes their mean gap the goal. Targets are not looked at.
    """

    a: int
    b: int

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the gaps."""
        return float(weights @ self.values(scores, targets))

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each column's gap."""
        self._check(scores)
        return scores[self.a] - scores[self.b]

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, columns)."""
        self._check(scores)
        out = np.zeros_like(scores)
        out[self.a] += weights
        out[self.b] -= weights
        return out

    def _check(self, scores: np.ndarray) -> None:
        if self.a == self.b or not {self.a, self.b} <= set(range(len(scores))):
            raise ValueError(
                f"A gap is that of two different scores of 0 to {len(scores) - 1}; received {self.a} and {self.b}.")


Density = Callable[[Expr, Expr], Expr]


class StateIntegral(NotPickled):
    r"""The mean over inputs of an integral of the final state, :math:`\frac1n\sum_i \int g(Y_i(x, T), x)\,dx`.

    Parameters
    ----------
    network
        The discrete map.
    sample
        With or without targets.
    m
        The network's controls.
    density
        g: (Y, x) -> UFL, of the state, a vector of C components, and of the place, both on whatever mesh it is.
    """

    def __init__(self, network: Network, sample: Sample, m: ControlsLike, density: Density):
        self.network, self.sample, self.m, self.density = network, sample, m, density
        self.inputs: Inputs = sample.inputs
        self.split = ImageSplit(len(sample), network.comm)
        self.layers = network.layers(m)

    def nodal_map(self) -> NodalMap:
        return nodal_map_for(self.network, self.inputs)

    def on(self, network: Network) -> StateIntegral:
        return StateIntegral(network, self.sample, self.m, self.density)

    def ending(self, chunks: Sequence[Chunk]) -> _IntegralEnding:
        return _IntegralEnding(self.network.space, self.network.features, self.density, len(self.sample))


class _IntegralEnding:
    @no_annotations
    def __init__(self, V: WithGeometry, features: int, density: Density, count: int):
        self._count = count
        self._Y = Function(VectorFunctionSpace(V.mesh(), V.ufl_element(), dim=features))
        x = SpatialCoordinate(V.mesh())
        integrand = density(self._Y, x)
        if not isinstance(integrand, Expr) or integrand.ufl_shape:
            raise ValueError(
                f"The density of a goal is a scalar UFL expression of (Y, x); received {integrand!r}.")
        self._by_node = integrand * TestFunction(V) * dx
        self._slope = derivative(integrand * dx(V.mesh()), self._Y)
        if expand_derivatives(self._slope).empty():
            raise ValueError(
                "The goal depends on no final state: the derivative of its density in Y is zero. Take one that does.")

    def _set(self, state: np.ndarray, image: int) -> None:
        self._Y.dat.data_wo[:] = state[:, :, image].reshape(self._Y.dat.data_ro.shape)

    def _nodes(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        out = np.zeros(state.shape[0])
        for image in range(chunk.images):
            self._set(state, image)
            out += assemble(self._by_node).dat.data_ro / self._count
        return out

    @no_annotations
    def value(self, chunk: Chunk, state: np.ndarray) -> float:
        return float(self._nodes(chunk, state).sum())

    @no_annotations
    def adjoint(self, chunk: Chunk, state: np.ndarray, lam: np.ndarray) -> None:
        lam[:] = 0.0
        for image in range(chunk.images):
            self._set(state, image)
            slope: Cofunction = assemble(self._slope)
            lam[:, :, image] = slope.dat.data_ro.reshape(lam.shape[:2]) / self._count

    @no_annotations
    def shares(
        self, chunk: Chunk, state: np.ndarray, other: _IntegralEnding, other_state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._nodes(chunk, state), other._nodes(chunk, other_state)
