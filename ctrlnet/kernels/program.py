r"""Time steps as programs: a scheme and a right-hand side are traced once into a short list of operations.

A step maps fields (features of all nodes and images) to fields. It is a composition of few things, each of which
knows its own first and second derivatives: operators with the layer's coefficients, activations, sums with powers
of the step size, and the solution of an implicit stage. Dynamics and integrators are written as formulae on
:class:`Field`; :mod:`ctrlnet.kernels.operations` runs them forwards, backwards, along tangents and to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ctrlnet.kernels.operations import Activate, Apply, Coefficients, Combine, Input, Pick, Resolve

__all__ = ["Field", "Program", "StepSize", "State"]


@dataclass(frozen=True)
class StepSize:
    r"""A multiple of a power of the step size, :math:`c h^p`, for formulae."""

    factor: float = 1.0
    power: int = 1

    def __mul__(self, other):
        if isinstance(other, (Field, State)):
            return other.scaled(self)
        if isinstance(other, StepSize):
            return StepSize(self.factor * other.factor, self.power + other.power)
        return StepSize(self.factor * other, self.power)

    __rmul__ = __mul__


class Field:
    """The result of an operation of a program; sums and multiples of fields are operations too."""

    def __init__(self, program: Program, index: int, terms: dict[int, dict[int, float]] | None = None):
        self.program = program
        # index -> power of h -> factor: a sum is one operation, made when it is used.
        self.terms = {index: {0: 1.0}} if terms is None else terms

    def scaled(self, step: StepSize) -> Field:
        terms = {
            i: {p + step.power: c * step.factor for p, c in powers.items()} for i, powers in self.terms.items()
        }
        return Field(self.program, -1, terms)

    def __add__(self, other: Field | None) -> Field:
        if other is None:
            return self
        terms = {i: dict(powers) for i, powers in self.terms.items()}
        for i, powers in other.terms.items():
            own = terms.setdefault(i, {})
            for p, c in powers.items():
                own[p] = own.get(p, 0.0) + c
        return Field(self.program, -1, terms)

    __radd__ = __add__

    def __neg__(self) -> Field:
        return self * -1.0

    def __sub__(self, other: Field) -> Field:
        return self + (-other)

    def __mul__(self, number: float) -> Field:
        return self.scaled(StepSize(number, 0))

    __rmul__ = __mul__


class State(tuple):
    """The fields of a system's state, (Y,) or (Y, V); None is a field that is zero."""

    def scaled(self, step: StepSize) -> State:
        return State(None if f is None else f.scaled(step) for f in self)

    def __add__(self, other: State) -> State:
        return State(b if a is None else a + b for a, b in zip(self, other, strict=True))

    def __mul__(self, number: float) -> State:
        return self.scaled(StepSize(number, 0))

    __rmul__ = __mul__

    def __neg__(self) -> State:
        return self * -1.0

    def __sub__(self, other: State) -> State:
        return self + (-other)


@dataclass
class Program:
    """Operations in the order they are run, with the indices of what goes in and comes out."""

    parts: int
    features: int
    operations: list = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, formula: Callable[[Program, State], State], parts: int, features: int) -> Program:
        """Trace a formula (program, state) -> state."""
        program = cls(parts, features)
        state = State(program._add(Input(k)) for k in range(parts))
        program.outputs = [program._index(f) for f in formula(program, state)]
        return program

    def _add(self, operation) -> Field:
        self.operations.append(operation)
        return Field(self, len(self.operations) - 1)

    def _index(self, f: Field | None) -> int:
        """Return the operation whose result a field is, summing its terms if there are several."""
        if f is None:
            return self._index(self._add(Combine(())))
        if len(f.terms) == 1:
            ((i, powers),) = f.terms.items()
            if powers == {0: 1.0}:
                return i
        terms = tuple((i, tuple(sorted(powers.items()))) for i, powers in f.terms.items())
        return self._index(self._add(Combine(terms)))

    # What right-hand sides are made of.

    def K(self, x: Field, stage: int, mask: np.ndarray | None = None) -> Field:
        r"""Return :math:`K x + b` with the controls of a stage; ``mask`` (C, C) multiplies the coefficients."""
        return self._add(Apply(self._index(x), "operators", Coefficients(stage, mask=mask), bias=True))

    def K_adjoint(
        self, z: Field, stage: int, left: np.ndarray | None = None, mask: np.ndarray | None = None,
    ) -> Field:
        r"""Return :math:`P K^* z`, :math:`K^* = M_L^{-1} K^T M_L` the adjoint in the lumped inner product, P = left."""
        return self._add(Apply(self._index(z), "adjoints", Coefficients(stage, True, left, mask)))

    def laplacian(self, x: Field, factor: float) -> Field:
        r"""Return :math:`\nu \Delta_h x`."""
        constant = factor * np.eye(self.features)[None]
        return self._add(Apply(self._index(x), "laplacian", Coefficients(0, constant=constant)))

    def activate(self, z: Field) -> Field:
        """Return sigma(z)."""
        return self._add(Activate(self._index(z)))

    def resolve(self, state: State, formula: Callable[[Program, State], State], guess: float) -> State:
        r"""Return U with :math:`U - g(U) = Y`, g the formula and Y the given state.

        ``guess``: where U lies between the state before the step (0) and after it (1).
        """
        inner = Program.of(formula, self.parts, self.features)
        resolved = self._add(Resolve(tuple(self._index(f) for f in state), inner, guess))
        index = len(self.operations) - 1
        del resolved
        return State(self._add(Pick(index, k)) for k in range(self.parts))

    def kinds(self) -> set[str]:
        """Return which sets of operators the program applies."""
        found = {o.rows for o in self.operations if isinstance(o, Apply)}
        for o in self.operations:
            if isinstance(o, Resolve):
                found |= o.inner.kinds()
        return found

    @cached_property
    def last_sums(self) -> frozenset[int]:
        """Sums at the end of the program that are outputs and nothing else."""
        found: set[int] = set()
        used: set[int] = set()
        for i in reversed(range(len(self.operations))):
            operation = self.operations[i]
            if not (isinstance(operation, Combine) and i in self.outputs):
                break
            found.add(i)
            used |= {x for x, _ in operation.terms}
        return frozenset(found - used)

    @property
    def implicit(self) -> bool:
        return any(isinstance(o, Resolve) for o in self.operations)


def sum_of(terms: Sequence[tuple[float, State]], parts: int) -> State:
    """Return a linear combination of states, zero terms left out."""
    total = State([None] * parts)
    for factor, state in terms:
        if factor:
            total = total + state * factor
    return total
