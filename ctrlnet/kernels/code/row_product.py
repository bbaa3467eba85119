"""A sparse matrix times a field, between precisions."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import scipy.sparse as sp
from mpi4py import MPI

from ctrlnet.kernels.code.arrays import pointer
from ctrlnet.kernels.code.compile import compile_text
from ctrlnet.kernels.code.templates import template

__all__ = ["ReadoutArgument", "RowProduct"]

_C_NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


class ReadoutArgument(ctypes.Structure):
    """What kernels take that apply a product themselves."""

    _fields_ = [("rows", ctypes.c_int)] + [(n, ctypes.c_void_p) for n in ("start", "column", "value", "product")]


class RowProduct:
    r"""The map :math:`x \mapsto A x` on arrays whose rows are values of nodes, summed in double precision.

    Parameters
    ----------
    matrix
        A, sparse (rows, columns).
    source, target
        Types of x and of the result, float32 or float64.
    comm
        Ranks that compile the kernel together.
    """

    def __init__(
        self, matrix: sp.csr_matrix | sp.csr_array, source: np.dtype | type, target: np.dtype | type, comm: MPI.Comm
    ):
        self.shape = matrix.shape
        self._source, self._target = np.dtype(source), np.dtype(target)
        self._arrays = (
            matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float64))
        self._matrix = [pointer(a) for a in self._arrays]
        text = f"#define IN {_C_NAMES[self._source]}\n#define OUT {_C_NAMES[self._target]}\n"
        text += template("code", "row_product.c.in")
        self._library = compile_text(text, "the sparse row product", comm)
        product = ctypes.cast(self._library.row_product, ctypes.c_void_p)
        self.c_struct = ReadoutArgument(self.shape[0], *self._matrix, product)

    def __call__(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write A x into ``out``: x (columns, ...) -> out (rows, ...), both contiguous; return ``out``."""
        width = math.prod(x.shape[1:])
        right = x.shape[0] == self.shape[1] and out.shape[0] == self.shape[0] and out.size == self.shape[0] * width
        if not (right and x.dtype == self._source and out.dtype == self._target):
            raise ValueError(
                f"A {self.shape} matrix from {self._source} to {self._target} cannot map {x.shape} {x.dtype} to "
                f"{out.shape} {out.dtype}."
            )
        if not (x.flags.c_contiguous and out.flags.c_contiguous):
            raise ValueError("A row product needs contiguous arrays; pass np.ascontiguousarray(x).")
        self._library.row_product(
            ctypes.c_int(self.shape[0]), *self._matrix, ctypes.c_size_t(width), pointer(x), pointer(out))
        return out
