"""Activation functions: sigma with its first and second derivatives, stated once in UFL.

The same callable serves both routes. The plain route puts it into a Firedrake expression; the fused
route differentiates it symbolically and prints C. ``tanh`` carries hand-written C on top, because its
derivatives are polynomials of its value and need no second evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import ufl
from firedrake import Constant
from ufl.core.expr import Expr

from ctrlnet.errors import finite
from ctrlnet.kernels.code.expressions import c_derivatives

__all__ = ["Activation", "SmoothedRelu", "identity", "relu", "smoothed_relu", "tanh"]

@dataclass(frozen=True)
class Activation:
    r"""A pointwise nonlinearity :math:`\sigma` applied to :math:`Z = KY + b`.

    Parameters
    ----------
    name
        Used in messages and in results.
    expression
        A callable from a scalar UFL expression to a scalar UFL expression, for example
        ``lambda z: z / (1 + abs(z))``.
    value_c, slope_c, curvature_c
        Optional C text over vectors for :math:`\sigma(z)` and, when ``keeps_value``, for
        :math:`\sigma'` and :math:`\sigma''` as functions of the *value* ``a = sigma(z)``. Left out,
        they are printed from the UFL derivatives as functions of ``z``.
    keeps_value
        Whether the sweeps store :math:`\sigma(Z)` (True) or :math:`Z` (False) for the adjoint.

    Raises
    ------
    ValueError
        If the expression is not scalar, or uses a UFL operator with no counterpart in C.
    """

    name: str
    expression: Callable[[Expr], Expr]
    value_c: str | None = None
    slope_c: str | None = None
    curvature_c: str | None = None
    keeps_value: bool = False

    def __post_init__(self) -> None:
        if self.keeps_value and None in (self.value_c, self.slope_c, self.curvature_c):
            raise ValueError(
                f"Activation {self.name!r} keeps its value but does not state value_c, slope_c and "
                "curvature_c. Give all three, or leave keeps_value=False to have them derived."
            )
        _ = self.c_text  # an expression that cannot be printed must fail here, not in a sweep

    def __call__(self, z: Expr) -> Expr:
        """Return the UFL expression sigma(z)."""
        return self.expression(z)

    @cached_property
    def c_text(self) -> tuple[str, str, str]:
        """C text of sigma(z), sigma'(kept) and sigma''(kept); the variable is ``z`` throughout."""
        if self.keeps_value:
            return self.value_c, self.slope_c, self.curvature_c
        z = ufl.variable(Constant(0.0))
        expression = ufl.as_ufl(self.expression(z))
        if expression.ufl_shape != ():
            raise ValueError(
                f"Activation {self.name!r} has shape {expression.ufl_shape}; it must map a scalar to a scalar."
            )
        return c_derivatives(expression, z)


tanh = Activation(
    "tanh", ufl.tanh, value_c="v_tanh(z)", slope_c="(SPLAT(1.0) - z * z)",
    curvature_c="(SPLAT(-2.0) * z * (SPLAT(1.0) - z * z))",
    keeps_value=True,
)
identity = Activation("identity", lambda z: z)
# The comparisons of relu and smoothed_relu are such that a NaN fails them all and is returned.
relu = Activation("relu", lambda z: ufl.conditional(ufl.le(z, 0), 0, z))


def smoothed_relu(eta: float = 0.1) -> Activation:
    r"""Return the continuously differentiable relu of half-width ``eta``.

    .. math:: \sigma(z) = 0 \;(z \le -\eta), \quad (z+\eta)^2/(4\eta) \;(|z| < \eta), \quad z \;(z \ge \eta).

    Raises
    ------
    ValueError
        If ``eta`` is not positive and finite.
    """
    if not (finite(eta) and eta > 0):
        raise ValueError(
            f"The half-width eta of smoothed_relu must be positive and finite, received {eta!r}; use relu for 0.")

    return Activation(f"smoothed_relu({eta:g})", SmoothedRelu(float(eta)))


@dataclass(frozen=True)
class SmoothedRelu:
    """The expression of :func:`smoothed_relu`."""

    eta: float

    def __call__(self, z: Expr) -> Expr:
        eta = self.eta
        parabola = (z + eta) * (z + eta) / (4 * eta)
        return ufl.conditional(ufl.le(z, -eta), 0, ufl.conditional(ufl.lt(z, eta), parabola, z))
