r"""Time steps as programs: a scheme and a right-hand side are traced once into a short list of operations.

A step maps fields (features of all nodes and images) to fields. It is a composition of few things, each of which
knows its own first and second derivatives: operators with the layer's coefficients, activations, sums with powers
of the step size, and the solution of an implicit stage. Dynamics and integrators are written as formulae on
:class:`Field`; :mod:`ctrlnet.formulas.operations` runs them forwards, backwards, along tangents and to second order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ctrlnet.formulas.coefficients import Coefficients
from ctrlnet.formulas.implicit_operations import Pick, Resolve, Resolvent
from ctrlnet.formulas.language import Formula, Pointwise, State, StepSize
from ctrlnet.formulas.operations import Activate, Apply, Combine, Grow, ImplicitDiffusion, Input, Operation

__all__ = ["Field", "Program", "residual_step"]


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


@dataclass
class Program:
    """Operations in the order they are run, with the indices of what goes in and comes out.

    It is a :class:`~ctrlnet.formulas.language.Language`: whatever a formula writes in it becomes an operation.
    """

    parts: int
    features: int
    parameters: tuple[str, ...] = ()  # names of what is learned beside coefficients and biases
    operations: list[Operation] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, formula: Formula, parts: int, features: int, parameters: tuple[str, ...] = ()) -> Program:
        """Trace a formula (language, state) -> state."""
        program = cls(parts, features, parameters)
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

    def activate(self, z: Field, activation: Pointwise) -> Field:
        """Return sigma(z)."""
        return self._add(Activate(self._index(z), activation))

    def grow(self, x: Field, stage: int, parameter: str) -> Field:
        r"""Return :math:`e^{r} x` with r a learned parameter."""
        return self._add(Grow(self._index(x), stage, self.parameters.index(parameter)))

    def resolvent(self, x: Field, stage: int, factor: float, parameter: str | None = None) -> Field:
        r"""Return :math:`(I - h \nu e^{r} \Delta_h)^{-1} x`, r a learned parameter or 0."""
        column = None if parameter is None else self.parameters.index(parameter)
        return self._add(Resolvent(self._index(x), stage, factor, column))

    def resolve(self, state: State, formula: Formula, guess: float) -> State:
        r"""Return U with :math:`U - g(U) = Y`, g the formula and Y the given state.

        ``guess``: where U lies between the state before the step (0) and after it (1).
        """
        inner = Program.of(formula, self.parts, self.features, self.parameters)
        self._add(Resolve(tuple(self._index(f) for f in state), inner, guess))
        index = len(self.operations) - 1
        return State(self._add(Pick(index, k)) for k in range(self.parts))

    def kinds(self) -> set[str]:
        """Return which sets of operators the program applies."""
        return set().union(*(o.kinds() for o in self.operations))

    def activations(self) -> list[Pointwise]:
        """Return the different functions that the program applies node by node, in their order."""
        return list(dict.fromkeys(a for o in self.operations for a in o.activations()))

    @property
    def fused_activation(self) -> Pointwise | None:
        """The sigma of a step that fused kernels know, see :func:`residual_step`; None if it is another step."""
        found = self.activations()
        if len(found) != 1 or self.parts != 1:
            return None
        known = residual_step(found[0], self.features)
        same = (self.operations, self.outputs) == (known.operations, known.outputs)
        return found[0] if same else None

    def before_diffusion(self) -> tuple[Program, ImplicitDiffusion] | None:
        """Return the program without the implicit diffusion that it ends with, and that; None if there is none."""
        *first, last = self.operations
        implicit = last.diffuses()
        if implicit is None or self.outputs != [len(first)] or len(self.parameters) != (implicit.column is not None):
            return None
        return Program(self.parts, self.features, self.parameters, first, [implicit.x]), implicit

    @cached_property
    def last_sums(self) -> frozenset[int]:
        """Sums at the end of the program that are outputs and nothing else."""
        found: set[int] = set()
        used: set[int] = set()
        for i in reversed(range(len(self.operations))):
            operation = self.operations[i]
            summed = operation.summed()
            if summed is None or i not in self.outputs:
                break
            found.add(i)
            used |= summed
        return frozenset(found - used)

    @property
    def implicit(self) -> bool:
        return any(o.stage_formula() is not None for o in self.operations)


def residual_step(activation: Pointwise, features: int) -> Program:
    r"""Return the program of :math:`Y + h\sigma(KY + b)`, the step that fused kernels know."""
    h = StepSize()
    return Program.of(lambda L, Y: Y + h * State([L.activate(L.K(Y[0], 0), activation)]), 1, features)
