r"""Differential operators as UFL bilinear forms :math:`a_j(u, v)`, the way a user writes them.

On a uniform mesh of intervals, quadrilaterals or hexahedra the built-in ones are the finite-difference stencils of
:mod:`ctrlnet.operators.stencils`; the vertex quadrature that lumps the mass also lumps the forms.

On a surface, a mesh of topological dimension below its geometric one, gradients are tangential: :math:`\nabla_\Gamma u`
has as many components as the ambient space, and :math:`\int\nabla_\Gamma u\cdot\nabla_\Gamma v` is the form of the
Laplace-Beltrami operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import ufl
from firedrake import SpatialCoordinate, dot, dx, grad, inner
from ufl.domain import extract_domains, extract_unique_domain

__all__ = [
    "Along", "AlongField", "Dirichlet", "Field", "Form", "Operator", "SecondAlong", "derivative",
    "directional_derivative", "identity", "laplacian", "lumped_dx", "second_derivative",
]

Form = Callable[[ufl.core.expr.Expr, ufl.core.expr.Expr], ufl.Form]
Field = Callable[[ufl.SpatialCoordinate], ufl.core.expr.Expr]


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


# The forms of the operators below are values: two of the same parameters are equal, and a file can say which they are.


@dataclass(frozen=True)
class Along:
    r"""(u, v) -> :math:`\int v\,\partial u/\partial x_{axis}`."""

    axis: int

    def __call__(self, u: ufl.core.expr.Expr, v: ufl.core.expr.Expr) -> ufl.Form:
        return _along(u, self.axis) * v * lumped_dx()


@dataclass(frozen=True)
class SecondAlong:
    r"""(u, v) -> :math:`-\int \partial_a u\,\partial_b v`, symmetrised in the axes a and b."""

    axis: int
    other: int

    def __call__(self, u: ufl.core.expr.Expr, v: ufl.core.expr.Expr) -> ufl.Form:
        a, b = self.axis, self.other
        if a == b:
            return -_along(u, a) * _along(v, a) * lumped_dx()
        return -0.5 * (_along(u, a) * _along(v, b) + _along(u, b) * _along(v, a)) * lumped_dx()


@dataclass(frozen=True)
class Dirichlet:
    r"""(u, v) -> :math:`-\int \nabla u\cdot\nabla v`."""

    def __call__(self, u: ufl.core.expr.Expr, v: ufl.core.expr.Expr) -> ufl.Form:
        return -inner(grad(u), grad(v)) * lumped_dx()


@dataclass(frozen=True)
class AlongField:
    r"""(u, v) -> :math:`\int v\, w\cdot\nabla u`; ``name`` is for messages."""

    name: str
    field: Field | ufl.core.expr.Expr

    def __call__(self, u: ufl.core.expr.Expr, v: ufl.core.expr.Expr) -> ufl.Form:
        field, mesh = self.field, extract_unique_domain(u)
        x = SpatialCoordinate(mesh)
        w = ufl.as_ufl(field(x) if callable(field) and not isinstance(field, ufl.core.expr.Expr) else field)
        shape, elsewhere = w.ufl_shape, [domain for domain in extract_domains(w) if domain != mesh]
        if elsewhere:
            raise ValueError(
                f"The vector field of {self.name!r} is a function on {elsewhere[0]}, but the images live on {mesh}. "
                "Give a function of the coordinate, such as lambda x: as_vector((-x[1], x[0], 0))."
            )
        if shape != x.ufl_shape:
            raise ValueError(
                f"The vector field of {self.name!r} must have {x.ufl_shape[0]} components on {mesh}, received the "
                f"shape {shape}. Give a UFL vector of the ambient space, such as as_vector((-x[1], x[0], 0))."
            )
        return dot(w, grad(u)) * v * lumped_dx()


identity = Operator("1")
_AXES = "xyz"


def derivative(axis: int) -> Operator:
    r"""Return :math:`\partial/\partial x_{axis}`: (u, v) -> int v du/dx.

    On a surface it is the component of the tangential gradient in the ambient direction ``axis``.

    Raises
    ------
    ValueError
        If there is no such axis.
    """
    return Operator(f"d{_axis_name(axis)}", (Along(int(axis)),))


def second_derivative(axis: int, other: int | None = None) -> Operator:
    r"""Return :math:`\partial^2/\partial x_{axis}\partial x_{other}`: (u, v) -> - int dv/dx du/dy, symmetrised.

    Raises
    ------
    ValueError
        If there is no such axis.
    """
    axis, other = int(axis), int(axis if other is None else other)
    return Operator(f"d{_axis_name(axis)}{_axis_name(other)}", (SecondAlong(axis, other),))


def directional_derivative(name: str, field: Field | ufl.core.expr.Expr) -> Operator:
    r"""Return :math:`w\cdot\nabla`: (u, v) -> int v w . grad u, for one vector field of a frame.

    On a surface only the tangential part of w counts.

    Parameters
    ----------
    name
        For example ``"east"``.
    field
        w, a UFL vector with as many components as the ambient space, finite at every vertex. A function of the
        coordinate x, such as ``lambda x: as_vector((-x[1], x[0], 0))``, serves every mesh; an expression or a Function
        its own mesh alone.

    Raises
    ------
    ValueError
        When the operator is assembled: if w has another shape than x, or is on another mesh.
    """

    return Operator(name, (AlongField(name, field),))


laplacian = Operator("laplacian", (Dirichlet(),))


def _axis_name(axis: int) -> str:
    if axis not in range(len(_AXES)):
        raise ValueError(f"An axis is 0, 1 or 2, for x, y or z; received {axis!r}.")
    return _AXES[axis]


def _along(u: ufl.core.expr.Expr, axis: int) -> ufl.core.expr.Expr:
    mesh = extract_unique_domain(u)
    if axis >= mesh.geometric_dimension:
        raise ValueError(
            f"There is no d/d{_AXES[axis]} on {mesh}, whose coordinates have {mesh.geometric_dimension} components. "
            "Leave the operator out."
        )
    return u.dx(axis)
