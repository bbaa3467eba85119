r"""A formula read as Firedrake's own language: each operation a variational solve with the lumped mass.

Nothing here is written by hand but the equations. For example :math:`Z = KY + b` is

.. math::
    \int_L Z_o v_o \,dx = \sum_{j,c} s_j[o,c]\, a_j(Y_c, v_o) + \int_L b_o v_o\,dx \quad \forall v \in V,

with the operators' forms :math:`a_j` as the user wrote them, and :math:`K^*` has the forms with their arguments
exchanged, :math:`\sum_{j,o} s_j[o,c]\, a_j(v_c, z_o)`. The lumped mass is diagonal. pyadjoint annotates every solve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ufl
from firedrake import Constant, Function, TestFunction, TrialFunction, solve, split
from firedrake.functionspaceimpl import WithGeometry
from ufl.classes import Zero
from ufl.core.expr import Expr

from ctrlnet.formulas.language import Formula, Pointwise, State, StepSize
from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.forms import Form, laplacian, lumped_dx

__all__ = ["UflField", "UflReading"]

# Exact for a diagonal matrix: one multiplication by its inverse.
_DIAGONAL_SOLVE = {"ksp_type": "preonly", "pc_type": "jacobi"}
_DIRECT_SOLVE = {"ksp_type": "preonly", "pc_type": "lu"}


class UflField:
    """A linear combination of states: a UFL vector of all features of all images, image index fastest.

    ``function`` is the state itself where it is one; so forms are the same, and compiled once, for all stages.
    """

    def __init__(self, expression: Expr, h: Constant, function: Function | None = None):
        self.expression, self._h, self.function = expression, h, function

    def scaled(self, step: StepSize) -> UflField:
        factor = step.factor
        for _ in range(step.power):
            factor = factor * self._h
        return UflField(factor * self.expression, self._h)

    def __add__(self, other: UflField | None) -> UflField:
        return self if other is None else UflField(self.expression + other.expression, self._h)

    __radd__ = __add__

    def __neg__(self) -> UflField:
        return self * -1.0

    def __sub__(self, other: UflField) -> UflField:
        return self + (-other)

    def __mul__(self, number: float) -> UflField:
        return self.scaled(StepSize(number, 0))

    __rmul__ = __mul__


class UflReading:
    """One step's formula over Firedrake expressions: a :class:`~ctrlnet.formulas.language.Language`.

    Parameters
    ----------
    operators
        With the forms that are used.
    space
        Of the states, C features of some images.
    features
        C.
    parameters
        Names of the learned parameters.
    s, b
        For each of a step's stages, coefficients (J C C components) and biases with the learned parameters after them;
        constant in space.
    h
        Step size.
    """

    def __init__(
        self, operators: Operators, space: WithGeometry, features: int, parameters: tuple[str, ...],
        s: Sequence[Function], b: Sequence[Function], h: Constant,
    ):
        self.operators, self.space, self.features, self._parameters = operators, space, features, parameters
        self._s = [np.array(split(f), dtype=object).reshape(len(operators), features, features) for f in s]
        self._b, self._h = [split(f) for f in b], h

    def step(self, formula: Formula, state: Sequence[Function]) -> list[Function]:
        """Return the parts of the state after a step."""
        results = formula(self, State(UflField(f, self._h, f) for f in state))
        zero = Function(self.space)
        return [zero if f is None else self._function(f) for f in results]

    def K(self, x: UflField, stage: int, mask: np.ndarray | None = None) -> UflField:
        r"""Return :math:`K x + b`."""
        S = self._s[stage] if mask is None else self._s[stage] * mask
        form = self._applied(S, self._function(x), lambda f: f.factors[::-1], lambda a, u, v: a(u, v))
        for image in self._by_feature(TestFunction(self.space)):
            form += sum(self._b[stage][o] * image[o] for o in range(self.features)) * lumped_dx()
        return self._solved(form)

    def K_adjoint(
        self, z: UflField, stage: int, left: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> UflField:
        r"""Return :math:`P K^* z`."""
        S = self._s[stage] if mask is None else self._s[stage] * mask
        S = S.swapaxes(1, 2) if left is None else np.array([left.astype(object) @ s.T for s in S])
        return self._solved(self._applied(S, self._function(z), lambda f: f.factors, lambda a, u, v: a(v, u)))

    def laplacian(self, x: UflField, factor: float) -> UflField:
        r"""Return :math:`\nu\Delta_h x`."""
        return self._solved(Constant(factor) * self._of_all(laplacian.factors[0], self._function(x)))

    def activate(self, z: UflField, activation: Pointwise) -> UflField:
        r"""Return :math:`\sigma(z)`, node by node."""
        return self._nodal(ufl.as_vector([activation(c) for c in self._components(self._function(z))]))

    def grow(self, x: UflField, stage: int, parameter: str) -> UflField:
        r"""Return :math:`e^r x`."""
        return self._nodal(ufl.exp(self._parameter(stage, parameter)) * self._function(x))

    def resolvent(self, x: UflField, stage: int, factor: float, parameter: str | None = None) -> UflField:
        r"""Return :math:`(I - h\nu e^r\Delta_h)^{-1} x`."""
        u, v, out = TrialFunction(self.space), TestFunction(self.space), Function(self.space)
        growth = 1 if parameter is None else ufl.exp(self._parameter(stage, parameter))
        left = ufl.inner(u, v) * lumped_dx()
        left += self._h * Constant(factor) * growth * ufl.inner(ufl.grad(u), ufl.grad(v)) * lumped_dx()
        right = ufl.inner(x.expression, v) * lumped_dx()
        solve(left == right, out, solver_parameters=_DIRECT_SOLVE)
        return UflField(out, self._h, out)

    def resolve(self, state: State, formula: Formula, guess: float) -> State:
        """Refuse: a nonlinear stage is not read.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "A step with a nonlinear implicit stage is not read as UFL; explicit schemes and IMEX are. Compare it with "
            "a dense solve, or write the equation as UserDynamics for Irksome."
        )

    def _parameter(self, stage: int, name: str) -> Expr:
        return self._b[stage][self.features + self._parameters.index(name)]

    def _components(self, expression: Expr) -> list[Expr]:
        return [expression[i] for i in range(self.space.value_size)]

    def _by_feature(self, expression: Expr) -> list[list[Expr]]:
        """Return the components of a state as a list of images of lists of features."""
        images = self.space.value_size // self.features
        return [[expression[c * images + i] for c in range(self.features)] for i in range(images)]

    def _applied(self, S: np.ndarray, x: Expr, order: Callable, act: Callable) -> ufl.Form:
        r"""Return the form of :math:`\sum_j S_j D_j x`, or of that with the adjoints.

        A product of operators is solved factor after factor: all but the one applied last, that one is in the form.
        ``order`` gives the factors in the order in which they are applied; products share what they have in common.
        """
        known: dict[tuple[int, ...], Expr] = {(): x}
        v = self._by_feature(TestFunction(self.space))
        form: Any = 0
        for coefficients, operator in zip(S, self.operators.operators, strict=True):
            *first, last = order(operator) or (lambda u, v: u * v * lumped_dx(),)
            for image, test in zip(self._by_feature(self._product(tuple(first), known, act)), v, strict=True):
                for o in range(self.features):
                    mixed = sum(coefficients[o, c] * image[c] for c in range(self.features))
                    if not isinstance(mixed, Zero):  # where a mask leaves nothing there is nothing to integrate
                        form += act(last, mixed, test[o])
        return form

    def _product(self, factors: tuple[Form, ...], known: dict[tuple[int, ...], Expr], act: Callable) -> Expr:
        """Return the factors applied one after the other, the first one first."""
        key = tuple(id(f) for f in factors)
        if key not in known:
            inner = self._product(factors[:-1], known, act)
            known[key] = self._solved(self._of_all(factors[-1], inner, act)).expression
        return known[key]

    def _of_all(self, form: Form, x: Expr, act: Callable = lambda a, u, v: a(u, v)) -> ufl.Form:
        pairs = zip(self._components(x), self._components(TestFunction(self.space)), strict=True)
        return sum(act(form, u, v) for u, v in pairs)

    def _solved(self, form: ufl.Form) -> UflField:
        r"""Return :math:`M_L^{-1}` of a linear form, V* -> V."""
        u, v, out = TrialFunction(self.space), TestFunction(self.space), Function(self.space)
        solve(ufl.inner(u, v) * lumped_dx() == form, out, solver_parameters=_DIAGONAL_SOLVE)
        return UflField(out, self._h, out)

    def _nodal(self, expression: Expr) -> UflField:
        """Return the state with an expression's values at the nodes.

        As an interpolation is: at a vertex only its own basis function differs from zero. But of a nonlinear
        interpolation Firedrake has no second derivatives.
        """
        return self._solved(ufl.inner(expression, TestFunction(self.space)) * lumped_dx())

    def _function(self, x: UflField) -> Function:
        """Return a linear combination as a state."""
        return self._nodal(x.expression).function if x.function is None else x.function
