"""A distributed sparse matrix as a map of fields: all features of all images at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import scipy.sparse as sp
from mpi4py import MPI
from petsc4py import PETSc

from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.operators.halo import Halo

__all__ = ["FieldMap", "FieldMapShell", "FieldsOf", "Shell", "shell_matrix"]

FieldsOf = Callable[[np.ndarray], Sequence[np.ndarray] | np.ndarray]


class FieldMap:
    """The rows of this rank of a matrix between nodes, of one mesh or of two, on double-precision fields."""

    def __init__(self, matrix: PETSc.Mat):
        comm = matrix.comm.tompi4py()
        start, columns, values = _without_zeros(*matrix.getValuesCSR())
        first, last = matrix.getOwnershipRangeColumn()
        inside = (columns >= first) & (columns < last)
        ghosts = np.unique(columns[~inside])
        self._owned = last - first
        self._halo = Halo(comm, self._owned, ghosts)
        local = np.where(inside, columns - first, self._owned + np.searchsorted(ghosts, columns))
        shape = (start.size - 1, self._owned + ghosts.size)
        self._product = RowProduct(sp.csr_array((values, local, start), shape=shape), np.float64, np.float64, comm)

    def __call__(self, field: np.ndarray, out: np.ndarray) -> None:
        """Write the map of owned rows (nodes, ...) -> (rows, ...)."""
        if self._halo.comm.size > 1:
            whole = np.empty((self._product.shape[1], *field.shape[1:]))
            whole[: self._owned] = field[: self._owned]
            self._halo.update(whole)
        else:
            whole = field[: self._owned]
        self._product(whole, out)


def _without_zeros(start: np.ndarray, columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return sparse rows without the zeros that assembly leaves: lumped quadrature makes many on quadrilaterals."""
    kept = values != 0
    return np.concatenate([[0], np.cumsum(kept)])[start], columns[kept], values[kept]


class FieldMapShell:
    """A map as the context of a PETSc Mat of type python, on vectors of several fields.

    Parameters
    ----------
    fields
        A vector's values -> the fields in it, each (nodes, ...) and contiguous; of columns and of rows.
    """

    def __init__(self, field_map: FieldMap, columns: FieldsOf, rows: FieldsOf):
        self._map, self._columns, self._rows = field_map, columns, rows
        self._image: PETSc.Vec | None = None

    def mult(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """y = map of x."""
        for part, out in zip(self._columns(x.array_r), self._rows(y.array), strict=True):
            self._map(part, out)

    def multAdd(self, mat: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec, z: PETSc.Vec) -> None:
        """z = y + map of x."""
        if self._image is None:
            self._image = z.duplicate()
        self.mult(mat, x, self._image)
        if y.handle != z.handle:
            y.copy(z)
        z.axpy(1.0, self._image)


class Shell(Protocol):
    """What the context of a PETSc Mat of type python must be able to do."""

    def mult(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Write the product with x to y."""


def shell_matrix(context: Shell, rows: int, columns: int, comm: PETSc.Comm | MPI.Comm) -> PETSc.Mat:
    """Return a context as a PETSc Mat with these numbers of rows and columns on this rank."""
    matrix = PETSc.Mat().createPython([(rows, None), (columns, None)], context=context, comm=comm)
    matrix.setUp()
    return matrix
