r"""Dynamics that a user writes as a variational form.

The state Y of an image is a vector field of C features. The semi-discrete equation is

.. math:: F(\dot Y, Y; s(t), b(t); v) = 0 \quad\forall v \in V^C,

linear in v, in UFL with Irksome's ``Dt``. The network's part of it, :math:`\int_L (KY + b)\cdot v\,dx` with the
operators' own bilinear forms, is :meth:`Layer.affine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ufl
from firedrake import TestFunction, TrialFunction
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.classes import IndexSum, Integral, MultiIndex
from ufl.core.expr import Expr
from ufl.domain import extract_unique_domain

from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.forms import Form, lumped_dx

__all__ = ["Layer", "UserDynamics"]


@dataclass(frozen=True)
class Layer:
    r"""What a right-hand side finds at a time t: the coefficients and biases, and the operators they multiply.

    Parameters
    ----------
    operators
        The J operators on the state's space.
    s, b
        UFL tensors (J, C, C), ``s[j, out, in]``, and (C,), constant in space.
    """

    operators: Operators
    s: Expr
    b: Expr

    def K(self, Y: Expr, v: Expr) -> ufl.Form:
        r"""Return :math:`\sum_{j,o,c} s_j[o, c]\, a_j(Y_c, v_o)`, the weak form of :math:`K = \sum_j s_j\otimes D_j`.

        Parameters
        ----------
        Y, v
            UFL vectors (C,); one of them the test function. ``K(v, Y)`` is the weak form of :math:`K^*Y`.

        Raises
        ------
        ValueError
            If an operator is a product, which has no form.
        """
        o, c = ufl.indices(2)
        total: Any = 0
        for j, operator in enumerate(self.operators.operators):
            mixed = ufl.as_vector(self.s[j, o, c] * Y[c], o)
            total += self._for_all(_single_form(operator), mixed, v)
        return total

    def bias(self, v: Expr) -> ufl.Form:
        r"""Return :math:`\int_L b\cdot v\,dx`."""
        return ufl.inner(self.b, v) * lumped_dx()

    def affine(self, Y: Expr, v: Expr) -> ufl.Form:
        r"""Return :math:`\int_L (KY + b)\cdot v\,dx`."""
        return self.K(Y, v) + self.bias(v)

    def _for_all(self, form: Form, U: Expr, V: Expr) -> ufl.Form:
        r"""Return :math:`\sum_o a(U_o, V_o)` for a bilinear form of scalars, in index notation.

        Written for scalar arguments, the form gets the index where these are replaced: a product of two indexed scalars
        then carries the index on, and the integrand is summed over it.
        """
        u, v = TrialFunction(self.operators.space), TestFunction(self.operators.space)
        o = ufl.Index()
        integrals = []
        for integral in apply_algebra_lowering(form(u, v)).integrals():
            integrand = ufl.replace(integral.integrand(), {u: U[o], v: V[o]})
            integrals.append(Integral(
                IndexSum(integrand, MultiIndex((o,))), integral.integral_type(), extract_unique_domain(self.s),
                integral.subdomain_id(), integral.metadata(), integral.subdomain_data()))
        return ufl.Form(integrals)


@dataclass(frozen=True)
class UserDynamics:
    r"""A semi-discrete equation :math:`F(\dot Y, Y; v) = 0`, for :class:`~ctrlnet.Irksome`.

    For example an Allen-Cahn network, :math:`\dot Y = \epsilon\Delta Y + Y - Y^3 + KY + b`::

        def allen_cahn(Y, v, layer):
            reaction = as_vector([y - y**3 for y in Y])
            return (inner(Dt(Y) - reaction, v) + eps * inner(grad(Y), grad(v))) * lumped_dx() - layer.affine(Y, v)

        network = cn.Network(operators, controls, dynamics=cn.UserDynamics(allen_cahn), integrator=cn.Irksome(...))

    Parameters
    ----------
    residual
        Called with the state, the test function and the :class:`Layer`; returns F. State and test function are vectors
        (C,) on the network's mesh, or tuples of such where there are several parts. The form may have coefficients,
        Functions on that mesh whose values may change later, and integrals over its boundary and facets, ``ds`` and
        ``dS``. Boundary conditions are the form's own, natural ones.
    parts
        Fields of the state. Images start the first, which the readout sees; the others start at zero. A part
        without ``Dt`` is algebraic: its equation is a constraint, for implicit schemes.

    Raises
    ------
    ValueError
        If the residual cannot be called, or there is no part.
    """

    residual: Callable[[Expr, Expr, Layer], ufl.Form]
    parts: int = 1
    parameters = ()  # learned beside coefficients and biases
    name = "UserDynamics"  # for messages
    formula = None

    @property
    def form(self) -> UserDynamics:
        return self

    def __post_init__(self):
        if not callable(self.residual):
            raise ValueError(
                f"The residual must be a function of (state, test function, layer) that returns a UFL form; received "
                f"{self.residual!r}."
            )
        if self.parts < 1:
            raise ValueError(f"A state has at least one part, received parts={self.parts!r}.")


def _single_form(operator) -> Form:
    if len(operator.factors) > 1:
        raise ValueError(
            f"Operator {operator.name!r} is a product of {len(operator.factors)} operators, each with its own solve "
            "with the mass; a variational form has no place for them. Use low_order_operators(V), or an Operator of "
            "one form, such as second_derivative(0, 1) for a mixed derivative."
        )
    return operator.factors[0] if operator.factors else lambda u, v: u * v * lumped_dx()
