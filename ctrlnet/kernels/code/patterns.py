"""The rows of some operators as the kernels take them."""

from __future__ import annotations

import ctypes

import numpy as np

from ctrlnet.kernels.code.precision import Precision
from ctrlnet.operators.stencil_table import Pattern, StencilTable

__all__ = ["PATTERN_TEXT", "OperatorRows", "PatternArgument"]

PATTERN_TEXT = """
/* Rows of J operators on one sparsity pattern; those of one class have the same values. */
typedef struct {
    int rows, nodes, operators;
    const int *order, *start, *column, *cls, *first;
    const T *table;
} pattern;
"""


class PatternArgument(ctypes.Structure):
    """The C structure of bare pointers; ``arrays`` keeps what they point to."""

    _fields_ = [(name, ctypes.c_int) for name in ("rows", "nodes", "operators")] + [
        (name, ctypes.c_void_p) for name in ("order", "start", "column", "cls", "first", "table")
    ]

    @classmethod
    def of(cls, pattern: Pattern, table: StencilTable, precision: Precision) -> PatternArgument:
        """Return the rows of one direction of a table."""
        arrays = [pattern.order, pattern.start, pattern.columns, pattern.row_class, pattern.first]
        arrays.append(np.ascontiguousarray(pattern.table, dtype=precision.dtype))
        argument = cls(pattern.rows, table.nodes, table.operators, *(a.ctypes.data for a in arrays))
        argument.arrays = arrays
        return argument


class OperatorRows:
    """Rows of J operators and of their transposes, in one precision."""

    def __init__(self, table: StencilTable, precision: Precision):
        self.table = table
        self.forward = PatternArgument.of(table.forward, table, precision)
        self.transposed = PatternArgument.of(table.transposed, table, precision)
