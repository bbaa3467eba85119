"""Linear maps of Functions that pyadjoint differentiates through: prolongations and maps of coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from firedrake import Cofunction, Function
from petsc4py import PETSc
from pyadjoint import Block, annotate_tape, get_working_tape, stop_annotating

__all__ = ["LinearMapBlock", "array_products", "mapped", "products_of"]

Apply = Callable[[Function, Function], None]
Transpose = Callable[[Cofunction, Cofunction], None]


class LinearMapBlock(Block):
    r"""v = A u on a tape. The adjoint maps V* -> U*, :math:`A^T`; the Hessian of a linear map is zero.

    Parameters
    ----------
    u, v
        In U and in V.
    apply
        Writes A u: (u, v).
    transpose
        Writes :math:`A^T g`: (g in V*, out in U*).
    """

    def __init__(self, u: Function, v: Function, apply: Apply, transpose: Transpose):
        super().__init__()
        self._spaces, self._apply, self._transpose = (u.function_space(), v.function_space()), apply, transpose
        self.add_dependency(u)
        self.add_output(v.create_block_variable())

    def _applied(self, u: Function) -> Function:
        out = Function(self._spaces[1])
        self._apply(u, out)
        return out

    def recompute_component(self, inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any) -> Function:
        return self._applied(inputs[0])

    def evaluate_tlm_component(
        self, inputs: Sequence[Any], tlm_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Function:
        return self._applied(tlm_inputs[0])

    def evaluate_adj_component(
        self, inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Cofunction:
        out = Cofunction(self._spaces[0].dual())
        self._transpose(adj_inputs[0], out)
        return out

    def evaluate_hessian_component(
        self, inputs: Sequence[Any], hessian_inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any,
        idx: int, relevant_dependencies: Any, prepared: Any = None,
    ) -> Cofunction:
        return self.evaluate_adj_component(inputs, hessian_inputs, block_variable, idx)


def mapped(u: Function, v: Function, apply: Apply, transpose: Transpose) -> Function:
    """Write A u into v, and return v, annotated on the working tape if annotation is on."""
    with stop_annotating():
        apply(u, v)
    if annotate_tape():
        get_working_tape().add_block(LinearMapBlock(u, v, apply, transpose))
    return v


def array_products(matrix: np.ndarray) -> tuple[Apply, Transpose]:
    """Return the products of an array, and of its transpose, with Functions that every rank has the whole of."""
    def write(u: Function | Cofunction, out: Function | Cofunction, A: np.ndarray) -> None:
        values = u.dat.data_ro
        out.dat.data[:] = np.tensordot(A, values, axes=1)

    return lambda u, out: write(u, out, matrix), lambda g, out: write(g, out, matrix.T)


def products_of(matrix: PETSc.Mat) -> tuple[Apply, Transpose]:
    """Return the products of a matrix of scalar spaces, and of its transpose, with each component of vector ones."""
    def write(u: Function | Cofunction, out: Function | Cofunction, transposed: bool) -> None:
        right, left = matrix.createVecs()
        x, y = (left, right) if transposed else (right, left)
        product = matrix.multTranspose if transposed else matrix.mult
        size = u.function_space().value_size
        target = out.dat.data.reshape(-1, size)
        for number, values in enumerate(u.dat.data_ro.reshape(-1, size).T):
            x.array[:] = values
            product(x, y)
            target[:, number] = y.array_r

    return lambda u, out: write(u, out, False), lambda g, out: write(g, out, True)
