"""What right-hand sides are made of, on fields of a chunk: operators with coefficients, activations, their derivatives.

A :class:`Primitives` object holds the compiled kernels of one feature count, activation and precision;
:mod:`ctrlnet.formulas.program` composes them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels.code.arrays import aligned_zeros, pointer
from ctrlnet.kernels.code.blocks import feature_blocks, vectors_of
from ctrlnet.kernels.code.compile import compile_text
from ctrlnet.kernels.code.expressions import Pointwise
from ctrlnet.kernels.code.patterns import PATTERN_TEXT, OperatorRows, PatternArgument
from ctrlnet.kernels.code.precision import precision_of
from ctrlnet.kernels.code.simd import simd_text
from ctrlnet.kernels.code.templates import pointwise_text, template

__all__ = ["Primitives"]

_TILE = 4  # features of one side of a gradient tile


class Primitives:
    r"""Kernels on fields (nodes, C, images) of one feature count, activation and precision.

    Parameters
    ----------
    features
        C.
    activation
        sigma.
    precision
        ``"double"`` or ``"single"``.
    widest_row
        The most neighbours of a node in any operator's rows on this rank.
    comm
        The mesh's communicator.

    Raises
    ------
    ValueError
        If the precision is neither.
    """

    def __init__(self, features: int, activation: Pointwise, precision: str, widest_row: int, comm: MPI.Comm):
        kind = precision_of(precision)
        self.features, self.precision = features, kind
        self.dtype, self.lanes = kind.dtype, kind.lanes
        self._identity = np.eye(features)
        self.keeps_value = activation.keeps_value
        vectors = vectors_of(features)
        self.image_block = self.lanes * vectors
        widest = comm.allreduce(widest_row, op=MPI.MAX)
        text = template(
            "traced", "primitives.c.in", POINTWISE=pointwise_text(activation.c_text), PATTERN=PATTERN_TEXT,
            VECTORS=str(vectors), APPLY=_apply_text(features, vectors), OUTER=_outer_text(features))
        text = f"{simd_text(kind)}\n#define C {features}\n#define WIDEST {widest}\n{text}"
        self._library = compile_text(text, f"the kernels of the right-hand side for {features} features", comm)

    def _cast(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array, dtype=self.dtype)

    def field(self, rows: int, images: int) -> np.ndarray:
        """Return a zero field."""
        return aligned_zeros((rows, self.features, images), self.dtype)

    def apply(
        self, rows: OperatorRows, S: np.ndarray, b: np.ndarray | None, x: np.ndarray, out: np.ndarray,
        accumulate: bool = False,
    ) -> None:
        """out = (out +) sum_j S_j D_j x + b, with S (J, C, C) indexed [j, out, in]; x has its ghosts filled."""
        self._run_apply(rows.forward, np.swapaxes(S, -1, -2), b, x, out, accumulate)

    def apply_transposed(
        self, rows: OperatorRows, S: np.ndarray, mu: np.ndarray, out: np.ndarray, accumulate: bool = False
    ) -> None:
        """out = (out +) sum_j (S_j D_j)^T mu; mu has its ghosts filled."""
        self._run_apply(rows.transposed, S, None, mu, out, accumulate)

    def _run_apply(self, pattern: PatternArgument, S, b, x, out, accumulate) -> None:
        vectors, more = ctypes.c_int(x.shape[-1] // self.lanes), ctypes.c_int(accumulate)
        if b is None and len(S) == 1 and np.array_equal(S[0], S[0, 0, 0] * self._identity):
            factor = ctypes.c_double(S[0, 0, 0])
            self._library.apply_alone(ctypes.byref(pattern), vectors, more, factor, pointer(x), pointer(out))
            return
        bias = np.zeros(self.features, self.dtype) if b is None else self._cast(b)
        coefficients = self._cast(S)
        self._library.apply(ctypes.byref(pattern), vectors, more, *map(pointer, (coefficients, bias, x, out)))

    def contract(self, rows: OperatorRows, mu: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return this rank's sum over nodes and images of mu (D_j x)^T, (J, C, C); mu has its ghosts filled."""
        out = np.zeros((rows.table.operators, self.features, self.features))
        self._library.contract(
            ctypes.byref(rows.transposed), ctypes.c_int(x.shape[-1] // self.lanes), *map(pointer, (mu, x, out)))
        return out

    def activate(self, z: np.ndarray, a: np.ndarray) -> None:
        """A = sigma(z)."""
        self._library.activation(self._count(z), pointer(z), pointer(a))

    def slope_times(self, kept: np.ndarray, w: np.ndarray, out: np.ndarray, accumulate: bool = False) -> None:
        """out = (out +) sigma' w, with sigma' from the value or from the argument: see :attr:`keeps_value`."""
        self._library.slope_times(self._count(w), ctypes.c_int(accumulate), *map(pointer, (kept, w, out)))

    def curvature_times(self, kept: np.ndarray, dz: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
        """out += sigma'' dz w."""
        self._library.curvature_times(self._count(w), *map(pointer, (kept, dz, w, out)))

    def weighted_sum(self, factors: Sequence[float], fields: Sequence[np.ndarray], out: np.ndarray) -> None:
        """out = sum of factors times fields, over the values of ``out``; contiguous arrays anywhere in memory."""
        pointers = (ctypes.c_void_p * len(fields))(*(f.ctypes.data for f in fields))
        numbers = (ctypes.c_double * len(factors))(*factors)
        self._library.weighted_sum(
            ctypes.c_size_t(out.size), ctypes.c_int(len(fields)), numbers, pointers, pointer(out))

    def _count(self, field: np.ndarray) -> ctypes.c_size_t:
        return ctypes.c_size_t(field.size // self.lanes)


def _apply_text(features: int, vectors: int) -> str:
    """One row of ``apply``: blocks of features x vectors stay in registers over all neighbours."""
    lines = []
    for c0, size in feature_blocks(features):
        cells = [(f, v) for f in range(size) for v in range(vectors)]
        lines += ["            {"]
        lines += [f"                V z{f}_{v} = SPLAT(b[{c0 + f}]);" for f, v in cells]
        lines += [
            "                for (int q = 0; q < m; q++) {",
            "                    const V *restrict y = x + (size_t)c[q] * C * nv + v;",
            f"                    const T *restrict k = K + q * CC + {c0};",
            "                    for (int f = 0; f < C; f++, y += nv, k += C) {",
        ]
        lines += [f"                        const V y{v} = y[{v}];" for v in range(vectors)]
        lines += [f"                        z{f}_{v} += k[{f}] * y{v};" for f, v in cells]
        lines += ["                    }", "                }", "                if (accumulate) {"]
        lines += [f"                    out[own + {c0 + f} * nv + {v}] += z{f}_{v};" for f, v in cells]
        lines += ["                } else {"]
        lines += [f"                    out[own + {c0 + f} * nv + {v}] = z{f}_{v};" for f, v in cells]
        lines += ["                }", "            }"]
    return "\n".join(lines)


def _outer_text(features: int) -> str:
    """g[r][c] += sum over images of left[r] right[c], in register tiles."""
    lines = []
    for r0, rows in feature_blocks(features, _TILE):
        for c0, columns in feature_blocks(features, _TILE):
            cells = [(r, c) for r in range(rows) for c in range(columns)]
            lines += ["            {"]
            lines += [f"                V g{r}_{c} = g[{(r0 + r) * features + c0 + c}];" for r, c in cells]
            lines += ["                for (int v = 0; v < nv; v++) {"]
            lines += [f"                    const V l{r} = left[{r0 + r} * nv + v];" for r in range(rows)]
            lines += [f"                    const V e{c} = right[{c0 + c} * nv + v];" for c in range(columns)]
            lines += [f"                    g{r}_{c} += l{r} * e{c};" for r, c in cells]
            lines += ["                }"]
            lines += [f"                g[{(r0 + r) * features + c0 + c}] = g{r}_{c};" for r, c in cells]
            lines += ["            }"]
    return "\n".join(lines)
