r"""Direct solves with one sparse matrix for all features of all images at once.

The matrix is factorised once, :math:`\Pi G \Pi^T = L D U` in an order that keeps L and U sparse, and its factors are
applied by generated C to SIMD vectors of columns. On several ranks every rank holds the factors of the
whole mesh and solves for its share of the columns: two exchanges of the field, and the same arithmetic for
any number of ranks.
"""

from __future__ import annotations

import ctypes

import numpy as np
import scipy.sparse as sp
from mpi4py import MPI
from petsc4py import PETSc
from scipy.sparse.linalg import splu

from ctrlnet.kernels.code.arrays import LINE, aligned_zeros, pointer
from ctrlnet.kernels.code.compile import compile_text
from ctrlnet.kernels.code.precision import Precision
from ctrlnet.kernels.code.simd import simd_text
from ctrlnet.kernels.code.templates import template

__all__ = ["DirectSolve", "gathered"]

_WIDEST_BLOCK = 8


def gathered(matrix: PETSc.Mat) -> sp.csr_array:
    """Return the whole of a distributed matrix on every rank. Collective."""
    comm = matrix.comm.tompi4py()
    start, columns, values = matrix.getValuesCSR()
    parts = comm.allgather((np.diff(start), columns, values))
    lengths, columns, values = (np.concatenate(p) for p in zip(*parts, strict=True))
    return sp.csr_array((values, columns, np.concatenate([[0], np.cumsum(lengths)])), shape=matrix.getSize())


class _FactorsArgument(ctypes.Structure):
    _fields_ = [("n", ctypes.c_int)] + [
        (name, ctypes.c_void_p)
        for name in ("node", "lower_start", "lower_column", "upper_start", "upper_column", "lower", "inverse", "upper")
    ]


class DirectSolve:
    r"""The maps :math:`G^{-1}` and :math:`G^{-T}` on fields (owned nodes, ...) of a chunk.

    Parameters
    ----------
    matrix
        G on all nodes in PETSc's numbering, the same on every rank. It is eliminated without pivoting: G is a
        symmetric positive definite matrix times a positive diagonal one.
    owned
        Rows of this rank.
    precision
        Of the fields and of the arithmetic; the factors are computed in double.
    comm
        The mesh's communicator.

    Raises
    ------
    ValueError
        If a pivot is not positive: G has not that form.
    """

    def __init__(self, matrix: sp.csr_array, owned: int, precision: Precision, comm: MPI.Comm):
        self.comm, self.lanes, self.dtype = comm, precision.lanes, precision.dtype
        self._rows = np.array(comm.allgather(owned))
        lu = splu(
            matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=dict(SymmetricMode=True)
        )
        pivots = lu.U.diagonal()
        if not (pivots > 0).all():
            raise ValueError(
                f"The operator is not positive: the smallest pivot is {pivots.min():g}. Check the sign of its "
                "coefficients."
            )
        lower, upper = lu.L.tocsr(), (sp.diags_array(1 / pivots) @ lu.U).tocsr()
        node = np.empty(matrix.shape[0], dtype=np.int32)
        node[lu.perm_c] = np.arange(matrix.shape[0])
        self.entries = lower.nnz + upper.nnz
        self.nbytes = 2 * self.entries * (self.dtype.itemsize + np.dtype(np.int32).itemsize)
        transposed = (upper.T.tocsr(), lower.T.tocsr())
        self._arguments = [self._argument(node, pivots, *pair) for pair in ((lower, upper), transposed)]
        text = simd_text(precision) + template("solves", "substitution.c.in")
        self._library = compile_text(text, "the substitution kernel", comm)
        self._work: dict[str, np.ndarray] = {}

    def _argument(self, node, pivots, lower, upper) -> _FactorsArgument:
        arrays = [node]
        for triangle in (sp.tril(lower, -1, format="csr"), sp.triu(upper, 1, format="csr")):
            arrays += [triangle.indptr.astype(np.int32), triangle.indices.astype(np.int32)]
            arrays.append(triangle.data.astype(self.dtype))
        arrays = [arrays[k] for k in (0, 1, 2, 4, 5, 3)] + [(1 / pivots).astype(self.dtype), arrays[6]]
        argument = _FactorsArgument(node.size, *(a.ctypes.data for a in arrays))
        argument.arrays = arrays  # the C struct holds bare pointers
        return argument

    def __call__(self, field: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Overwrite a contiguous field (owned nodes, C, images) by the solution and return it. Collective."""
        if self.comm.size == 1 and field.ctypes.data % LINE:
            aligned = self._scratch("aligned", field.shape)
            aligned[:] = field
            field[:] = self(aligned, transposed)
            return field
        nodes = self._rows.sum()
        columns = field[0].size if field.size else int(np.prod(field.shape[1:]))
        x = self._scratch("x", (nodes, min(_WIDEST_BLOCK * self.lanes, columns)))
        if self.comm.size == 1:
            self._substitute(field, columns, transposed, x)
            return field
        vectors = columns // self.lanes
        edges = [vectors * r // self.comm.size * self.lanes for r in range(self.comm.size + 1)]
        flat = field.reshape(-1, columns)
        widths = np.diff(edges)
        mine = widths[self.comm.rank]
        outgoing = self._scratch("outgoing", (flat.size,))
        whole = self._scratch("whole", (nodes, mine))
        ends = np.cumsum(widths * flat.shape[0])
        pieces = [outgoing[e - w * flat.shape[0] : e].reshape(-1, w) for e, w in zip(ends, widths, strict=True)]
        for piece, begin, end in zip(pieces, edges, edges[1:], strict=False):
            piece[:] = flat[:, begin:end]
        kind = MPI.DOUBLE if self.dtype == np.float64 else MPI.FLOAT
        out = [outgoing, widths * flat.shape[0], kind]
        into = [whole, self._rows * mine, kind]
        self.comm.Alltoallv(out, into)
        if mine:
            self._substitute(whole, mine, transposed, x)
        self.comm.Alltoallv(into, out)
        for piece, begin, end in zip(pieces, edges, edges[1:], strict=False):
            flat[:, begin:end] = piece
        return field

    def _substitute(self, field: np.ndarray, columns: int, transposed: bool, x: np.ndarray) -> None:
        pointers = map(pointer, (field, field, x))
        argument = ctypes.byref(self._arguments[transposed])
        self._library.substitute(argument, ctypes.c_int(columns // self.lanes), *pointers)

    def _scratch(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return memory that is kept between solves: fresh memory would cost page faults."""
        if self._work.get(name) is None or self._work[name].shape != shape:
            self._work[name] = aligned_zeros(shape, self.dtype)
        return self._work[name]
