"""The sparse pattern that the sweeps run over: rows of all D_j together, equal rows stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from ctrlnet.operators.halo import Halo

__all__ = ["Pattern", "StencilTable"]

# Values are compared on a grid of this relative width. The shift keeps round numbers off its edges, so
# that rows which differ by round-off alone fall into one class.
_QUANTUM = 1e-12
_SHIFT = 0.31415
_DROP = 1e-14
# Up to this many classes the nodes are visited class by class, beyond it in their own order.
_FEW_CLASSES = 64


@dataclass(frozen=True)
class Pattern:
    """Compressed rows of J operators on one sparsity pattern.

    Row ``i`` has the neighbours ``columns[start[i]:start[i+1]]`` (local numbers, ghosts after owned
    nodes); its values are ``table[first[row_class[i]] + q, j]`` for neighbour ``q`` and operator ``j``.
    ``order`` lists the rows as the sweeps visit them.
    """

    start: np.ndarray
    columns: np.ndarray
    row_class: np.ndarray
    first: np.ndarray
    table: np.ndarray
    order: np.ndarray

    @property
    def rows(self) -> int:
        return self.row_class.size

    @property
    def classes(self) -> int:
        return self.first.size

    @property
    def widest_row(self) -> int:
        return int(np.diff(self.start).max(initial=1))

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours of row ``i`` and its values (neighbours, J)."""
        neighbours = self.columns[self.start[i] : self.start[i + 1]]
        first = self.first[self.row_class[i]]
        return neighbours, self.table[first : first + neighbours.size]

    def dense(self, columns: int) -> np.ndarray:
        """Return the J operators as one dense array (J, rows, columns), for tests and small meshes."""
        out = np.zeros((self.table.shape[1], self.rows, columns))
        for i in range(self.rows):
            neighbours, values = self.row(i)
            out[:, i, neighbours] = values.T
        return out


def union_of_entries(matrices: Sequence[PETSc.Mat]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return rows, global columns and values (entries, J) of the union of the patterns, and the row count."""
    count = matrices[0].getLocalSize()[0]
    width = matrices[0].getSize()[1]
    keys, values = [], []
    for matrix in matrices:
        start, columns, entries = matrix.getValuesCSR()
        rows = np.repeat(np.arange(count, dtype=np.int64), np.diff(start))
        keys.append(rows * width + columns)
        values.append(entries)
    union, position = np.unique(np.concatenate(keys), return_inverse=True)
    merged = np.zeros((union.size, len(matrices)))
    operator = np.repeat(np.arange(len(matrices)), [k.size for k in keys])
    merged[position, operator] = np.concatenate(values)
    return union // width, union % width, merged, count


def _drop_round_off(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, scale: np.ndarray):
    """Leave out entries that are round-off against every operator's own size."""
    keep = (np.abs(values) > _DROP * scale).any(axis=1)
    return rows[keep], columns[keep], values[keep]


def _compress(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, count: int, scale: np.ndarray) -> Pattern:
    """Sort each row into a canonical order, find equal rows, and store each distinct row once."""
    quantised = np.floor(values / (_QUANTUM * scale) + _SHIFT)
    ranking = np.lexsort((*quantised.T, rows))
    rows, columns, values, quantised = rows[ranking], columns[ranking], values[ranking], quantised[ranking]
    length = np.bincount(rows, minlength=count)
    start = np.concatenate([[0], np.cumsum(length)])
    row_class = np.zeros(count, dtype=np.int64)
    representatives: list[np.ndarray] = []
    found = 0
    for size in np.unique(length):
        members = np.flatnonzero(length == size)
        entries = start[members][:, None] + np.arange(size)
        signature = quantised[entries].reshape(members.size, -1)
        _, index, inverse = np.unique(signature, axis=0, return_index=True, return_inverse=True)
        row_class[members] = found + inverse.reshape(-1)
        representatives.extend(entries[index])
        found += index.size
    sizes = np.array([r.size for r in representatives], dtype=np.int64)
    picked = np.concatenate(representatives) if representatives else np.zeros(0, dtype=np.int64)
    order = np.argsort(row_class, kind="stable") if found <= _FEW_CLASSES else np.arange(count)
    as_int = np.int32
    return Pattern(
        start.astype(as_int), columns.astype(as_int), row_class.astype(as_int),
        np.concatenate([[0], np.cumsum(sizes)])[:found].astype(as_int),
        np.ascontiguousarray(values[picked]), order.astype(as_int),
    )


class StencilTable:
    r"""The rows of :math:`D_j` and of :math:`D_j^T` that a rank owns, with one halo for both.

    Parameters
    ----------
    matrices
        J square PETSc matrices over one row distribution.

    Attributes
    ----------
    forward, transposed : Pattern
        Rows of :math:`D_j` and of its transpose. Both directions gather, so that no sweep scatters.
    halo : Halo
        Fills the ghost rows of a field.
    """

    def __init__(self, matrices: Sequence[PETSc.Mat]):
        comm = matrices[0].comm.tompi4py()
        first, last = matrices[0].getOwnershipRange()
        self.owned = last - first
        self.operators = len(matrices)
        largest = np.array([np.abs(m.getValuesCSR()[2]).max(initial=0.0) for m in matrices])
        scale = np.empty_like(largest)
        comm.Allreduce(largest, scale, op=MPI.MAX)
        scale[scale == 0] = 1.0
        unions = []
        for direction in (matrices, [_transpose(m) for m in matrices]):
            rows, columns, values, count = union_of_entries(direction)
            unions.append((*_drop_round_off(rows, columns, values, scale), count))
        outside = [c[(c < first) | (c >= last)] for _, c, _, _ in unions]
        ghosts = np.unique(np.concatenate(outside))
        self.halo = Halo(comm, self.owned, ghosts)
        patterns = []
        for rows, columns, values, count in unions:
            inside = (columns >= first) & (columns < last)
            local = np.where(inside, columns - first, self.owned + np.searchsorted(ghosts, columns))
            patterns.append(_compress(rows, local, values, count, scale))
        self.forward, self.transposed = patterns

    @property
    def nodes(self) -> int:
        """Owned nodes and ghosts."""
        return self.owned + self.halo.ghosts


def _transpose(matrix: PETSc.Mat) -> PETSc.Mat:
    out = PETSc.Mat()
    matrix.transpose(out)
    return out

