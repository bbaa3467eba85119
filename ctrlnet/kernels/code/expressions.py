"""C text over SIMD vectors for scalar UFL expressions, and for their derivatives."""

from __future__ import annotations

from typing import Protocol

import ufl
from firedrake import Constant
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.classes import (
    Abs,
    Condition,
    Conditional,
    Conj,
    Division,
    Expr,
    MathFunction,
    MaxValue,
    MinValue,
    Power,
    Product,
    Real,
    ScalarValue,
    Sum,
    Variable,
    Zero,
)

__all__ = ["Pointwise", "c_derivatives"]

_FUNCTIONS = {"exp", "tanh", "ln", "sqrt", "sin", "cos", "tan", "atan", "cosh", "sinh", "erf"}


def _print_c(node: Expr, argument: Expr) -> str:
    """Return C text over SIMD vectors for a scalar UFL expression of ``argument``."""
    if node == argument:
        return "z"
    if isinstance(node, (Variable, Real, Conj)):
        return _print_c(node.ufl_operands[0], argument)
    if isinstance(node, Zero):
        return "SPLAT(0.0)"
    if isinstance(node, ScalarValue):
        return f"SPLAT({float(node)!r})"
    if isinstance(node, Constant):
        return f"SPLAT({float(node.dat.data_ro.item())!r})"
    terms = [] if isinstance(node, Conditional) else [_print_c(o, argument) for o in node.ufl_operands]
    if isinstance(node, Sum):
        return "(" + " + ".join(terms) + ")"
    if isinstance(node, Product):
        return "(" + " * ".join(terms) + ")"
    if isinstance(node, Division):
        return f"({terms[0]} / {terms[1]})"
    if isinstance(node, Power):
        exponent = node.ufl_operands[1]
        if isinstance(exponent, ScalarValue) and float(exponent) == int(exponent) and 0 < int(exponent) <= 8:
            return "(" + " * ".join([terms[0]] * int(exponent)) + ")"
        return f"v_pow({terms[0]}, {terms[1]})"
    if isinstance(node, MathFunction) and node._name in _FUNCTIONS:
        return f"v_{node._name}({terms[0]})"
    if isinstance(node, Abs):
        return f"SELECT({terms[0]} < SPLAT(0.0), -{terms[0]}, {terms[0]})"
    if isinstance(node, (MaxValue, MinValue)):
        comparison = ">" if isinstance(node, MaxValue) else "<"
        return f"SELECT({terms[0]} {comparison} {terms[1]}, {terms[0]}, {terms[1]})"
    if isinstance(node, Conditional):
        condition, *branches = node.ufl_operands
        yes, no = (_print_c(o, argument) for o in branches)
        return f"SELECT({_print_c(condition, argument)}, {yes}, {no})"
    relation = getattr(node, "_name", None)
    if isinstance(node, Condition) and relation in {"<", ">", "<=", ">=", "==", "!="}:
        return f"({terms[0]} {relation} {terms[1]})"
    raise ValueError(
        f"The activation uses {type(node).__name__}, which has no SIMD counterpart. Write it with "
        f"+, -, *, /, **, abs, conditional, max_value, min_value and {', '.join(sorted(_FUNCTIONS))}."
    )


class Pointwise(Protocol):
    r"""What kernels need of an activation: :math:`\sigma, \sigma', \sigma''` as C text over vectors.

    Attributes
    ----------
    c_text
        sigma(z), then its derivatives as functions of what is kept; the variable is ``z`` throughout.
    keeps_value
        Whether sigma(Z) (True) or Z (False) is kept for the derivatives.
    """

    @property
    def c_text(self) -> tuple[str, str, str]: ...

    @property
    def keeps_value(self) -> bool: ...


def c_derivatives(expression: Expr, argument: Expr) -> tuple[str, str, str]:
    """Return C text of a scalar expression and of its first and second derivative with respect to its argument.

    Raises
    ------
    ValueError
        If it uses a UFL operator with no counterpart in C.
    """
    texts = []
    for _ in range(3):
        lowered = apply_derivatives(apply_algebra_lowering(ufl.as_ufl(expression)))
        texts.append(_print_c(lowered, argument))
        expression = ufl.diff(lowered, argument)
    value, slope, curvature = texts
    return value, slope, curvature
