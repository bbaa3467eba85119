"""The objective of a training problem, average loss plus regularisation: Functions to Cofunctions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from firedrake import Function

from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.objective.average import Average
from ctrlnet.objective.point import Point
from ctrlnet.objective.regularisation import Regularisation

__all__ = ["Objective", "ObjectiveAt"]

Arrays = Mapping[str, np.ndarray]


class Objective:
    r"""The map :math:`m \mapsto J(m) = \text{average loss} + R(m)`, M -> R, of all controls m.

    Parameters
    ----------
    average
        Of the loss.
    regularisation
        R; None for the loss alone.

    Attributes
    ----------
    control_set
        M: the controls in time and the classifier.
    """

    def __init__(self, average: Average, regularisation: Regularisation | None = None):
        self.average, self.regularisation = average, regularisation
        self.control_set = average.network.control_set + average.readout.control_set

    def at(self, m: ControlsLike) -> ObjectiveAt:
        """Return the objective at some controls, whose values are copied; nothing is propagated yet."""
        return ObjectiveAt(self, m)

    def point(self, arrays: Arrays) -> Point:
        """Return degrees of freedom by name as averages take them."""
        return Point(self.average.network.layers_of(arrays), *self.average.readout.arrays_of(arrays))

    def penalty(self, arrays: Arrays) -> float:
        """Return R."""
        return 0.0 if self.regularisation is None else self.regularisation.value(arrays)

    def cofunctions(self, derivative: Point, arrays: Arrays, factor: float = 1.0) -> Controls:
        """Return factor * (derivative of the loss + A u) in M*, u the degrees of freedom given."""
        total = self.average.network.layers_adjoint(derivative.layers)
        total |= self.average.readout.by_name(derivative.W, derivative.beta)
        if self.regularisation is not None:
            for name, part in self.regularisation.products(arrays).items():
                total[name] = total[name] + part
        return self.control_set.cofunctions({name: factor * values for name, values in total.items()})


class ObjectiveAt:
    """The objective at one set of controls, with what was propagated there.

    Parameters
    ----------
    objective
        J.
    m
        All controls.

    Attributes
    ----------
    loss : float
        The mean loss alone, after :meth:`value`.
    """

    def __init__(self, objective: Objective, m: ControlsLike):
        self.objective = objective
        controls = objective.control_set.controls(m)
        self._given = [(c, c.dat.dat_version) for c in controls]
        self._arrays = {n: values.copy() for n, values in objective.control_set.arrays(controls).items()}
        self.point = objective.point(self._arrays)
        self._at = objective.average.at(self.point.layers)
        self.loss = float("nan")

    def is_of(self, controls: Sequence[Function]) -> bool:
        """Whether these are the very Functions that the objective was asked for at, unchanged since."""
        return all(c is given and c.dat.dat_version == version
                   for c, (given, version) in zip(controls, self._given, strict=True))

    def value(self) -> float:
        """Return J. Raises :class:`~ctrlnet.PropagationError` if a state is not finite."""
        self.loss = self._at.value(self.point.W, self.point.beta)
        return self.loss + self.objective.penalty(self._arrays)

    def derivative(self, factor: float = 1.0) -> Controls:
        """Return factor * J' in M*."""
        gradient = self._at.gradient(self.point.W, self.point.beta)
        return self.objective.cofunctions(gradient, self._arrays, factor)

    def _direction(self, direction: Sequence[Function | None]) -> dict[str, np.ndarray]:
        control_set = self.objective.control_set
        return control_set.arrays(control_set.filled(direction))

    def tangent(self, direction: Sequence[Function | None]) -> float:
        """Return J' times a direction; None stands for zero."""
        objective, along = self.objective, self._direction(direction)
        change = self._at.tangent(self.point.W, self.point.beta, objective.point(along))
        if objective.regularisation is not None:
            products = objective.regularisation.products(self._arrays)
            change += sum(float((products[n] * values).sum()) for n, values in along.items())
        return change

    def hessian(self, direction: Sequence[Function | None], factor: float = 1.0) -> Controls:
        """Return factor * J'' times a direction, exact for the discrete scheme; None stands for zero."""
        return self._product(self._at.hessian, direction, factor)

    def gauss_newton(self, direction: Sequence[Function | None], factor: float = 1.0) -> Controls:
        """Return factor * (the loss's Gauss-Newton matrix + R'') times a direction; None stands for zero."""
        return self._product(self._at.gauss_newton, direction, factor)

    def _product(
        self, product: Callable[[np.ndarray, np.ndarray, Point], Point], direction: Sequence[Function | None],
        factor: float,
    ) -> Controls:
        along = self._direction(direction)
        change = product(self.point.W, self.point.beta, self.objective.point(along))
        return self.objective.cofunctions(change, along, factor)
