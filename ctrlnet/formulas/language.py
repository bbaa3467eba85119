r"""The language in which right-hand sides and time steps are written, whoever reads it.

A formula is a function (language, state) -> state. It is read as a program of kernels, by
:class:`~ctrlnet.formulas.program.Program`, and as variational solves of Firedrake's, by
:class:`~ctrlnet.formulas.ufl_reading.UflReading`: one formula, two independent routes to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ufl.core.expr import Expr

__all__ = ["Field", "Formula", "Language", "Pointwise", "State", "StepSize", "sum_of"]


class Pointwise(Protocol):
    """A function of a number, in UFL and as C text with its derivatives; see :class:`~ctrlnet.Activation`."""

    @property
    def keeps_value(self) -> bool: ...

    @property
    def c_text(self) -> tuple[str, str, str]: ...

    def __call__(self, z: Expr) -> Expr: ...


class Field(Protocol):
    """C features of all images on the nodes: a vector of the formula. Sums and multiples are fields too."""

    def scaled(self, step: StepSize) -> Field:
        """Return the multiple :math:`c h^p` of the field."""
        ...

    def __add__(self, other: Any) -> Any: ...

    def __sub__(self, other: Any) -> Any: ...

    def __mul__(self, number: float) -> Any: ...

    def __neg__(self) -> Any: ...


@dataclass(frozen=True)
class StepSize:
    r"""A multiple of a power of the step size, :math:`c h^p`, for formulae."""

    factor: float = 1.0
    power: int = 1

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, (int, float)):
            return StepSize(self.factor * other, self.power)
        return other.scaled(self)

    __rmul__ = __mul__

    def scaled(self, step: StepSize) -> StepSize:
        """Return the product of two multiples."""
        return StepSize(self.factor * step.factor, self.power + step.power)


class State(tuple):
    """The fields of a system's state, (Y,) or (Y, V); None is a field that is zero."""

    def scaled(self, step: StepSize) -> State:
        return State(None if f is None else f.scaled(step) for f in self)

    def __add__(self, other: tuple) -> State:
        return State(
            b if a is None else (a if b is None else a + b) for a, b in zip(self, other, strict=True))

    def __mul__(self, number: Any) -> State:
        return self.scaled(StepSize(number, 0))

    __rmul__ = __mul__

    def __neg__(self) -> State:
        return self * -1.0

    def __sub__(self, other: State) -> State:
        return self + (-other)


class Language(Protocol):
    r"""What right-hand sides are made of. ``stage`` says at which of a step's times the controls are taken.

    Attributes
    ----------
    features
        C.
    """

    features: int

    def K(self, x: Field, stage: int, mask: np.ndarray | None = None) -> Field:
        r"""Return :math:`K x + b`; ``mask`` (C, C) multiplies the coefficients."""
        ...

    def K_adjoint(
        self, z: Field, stage: int, left: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> Field:
        r"""Return :math:`P K^* z`, :math:`K^* = M_L^{-1} K^T M_L` the adjoint in the lumped inner product, P = left."""
        ...

    def laplacian(self, x: Field, factor: float) -> Field:
        r"""Return :math:`\nu \Delta_h x`, no flux through the boundary, :math:`\nu` = factor."""
        ...

    def activate(self, z: Field, activation: Pointwise) -> Field:
        r"""Return :math:`\sigma(z)`, node by node."""
        ...

    def grow(self, x: Field, stage: int, parameter: str) -> Field:
        r"""Return :math:`e^{r} x` with r a learned parameter, by its name."""
        ...

    def resolvent(self, x: Field, stage: int, factor: float, parameter: str | None = None) -> Field:
        r"""Return :math:`(I - h \nu e^{r} \Delta_h)^{-1} x`, r a learned parameter or, without a name, 0."""
        ...

    def resolve(self, state: State, formula: Formula, guess: float) -> State:
        r"""Return U with :math:`U - g(U) = Y`, g the formula and Y the given state.

        ``guess``: where U lies between the state before the step (0) and after it (1).
        """
        ...


# What is read: (language, state) -> state.
Formula = Callable[[Any, State], State]


def sum_of(terms: list[tuple[float, State]], parts: int) -> State:
    """Return a linear combination of states, zero terms left out."""
    total = State([None] * parts)
    for factor, state in terms:
        if factor:
            total = total + state * factor
    return total
