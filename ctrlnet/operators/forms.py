r"""Differential operators as UFL bilinear forms :math:`a_j(u, v)`, the way a user writes them.

On a uniform mesh of intervals, quadrilaterals or hexahedra the built-in ones are the finite-difference stencils of
:mod:`ctrlnet.operators.stencils`; the vertex quadrature that lumps the mass also lumps the forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ufl
from firedrake import dx, grad, inner

__all__ = ["Form", "Operator", "derivative", "identity", "laplacian", "lumped_dx", "second_derivative"]

Form = Callable[[ufl.core.expr.Expr, ufl.core.expr.Expr], ufl.Form]


def lumped_dx() -> ufl.Measure:
    """The vertex quadrature that makes the mass of a nodal P1 or Q1 space diagonal."""
    return dx(scheme="KMV", degree=1)


@dataclass(frozen=True)
class Operator:
    r"""A differential operator given by a bilinear form, or a product of such.

    Parameters
    ----------
    name
        For tables and figures, for example ``"dx"``.
    factors
        Callables ``a(u, v)`` that return a UFL bilinear form. The operator is
        :math:`M_L^{-1}A_1\, M_L^{-1}A_2 \cdots`; no factor is the identity. Boundary conditions are the
        form's own; integrate over :func:`lumped_dx` to get finite-difference stencils.
    """

    name: str
    factors: tuple[Form, ...] = field(default=())

    def __matmul__(self, other: Operator) -> Operator:
        """The product, this operator applied last."""
        name = " ".join(n for n in (self.name, other.name) if n != "1") or "1"
        return Operator(name, self.factors + other.factors)


identity = Operator("1")
_AXES = "xyz"


def derivative(axis: int) -> Operator:
    r"""Return :math:`\partial/\partial x_{axis}`: (u, v) -> int v du/dx."""
    return Operator(f"d{_AXES[axis]}", (lambda u, v: u.dx(axis) * v * lumped_dx(),))


def second_derivative(axis: int, other: int | None = None) -> Operator:
    r"""Return :math:`\partial^2/\partial x_{axis}\partial x_{other}`: (u, v) -> - int dv/dx du/dy, symmetrised."""
    other = axis if other is None else other

    def form(u, v):
        if axis == other:
            return -u.dx(axis) * v.dx(axis) * lumped_dx()
        return -0.5 * (u.dx(axis) * v.dx(other) + u.dx(other) * v.dx(axis)) * lumped_dx()

    return Operator(f"d{_AXES[axis]}{_AXES[other]}", (form,))


laplacian = Operator("laplacian", (lambda u, v: -inner(grad(u), grad(v)) * lumped_dx(),))
