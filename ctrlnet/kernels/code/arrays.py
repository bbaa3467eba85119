"""Arrays as the SIMD kernels take them."""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np

__all__ = ["LINE", "LinearSolve", "aligned_zeros", "pointer"]

LINE = 64  # bytes of a SIMD vector


class LinearSolve(Protocol):
    """The inverse of a matrix and of its transpose, on fields of this rank's nodes.

    Attributes
    ----------
    nbytes
        What it keeps.
    """

    @property
    def nbytes(self) -> int: ...

    def __call__(self, field: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Overwrite a field by the solution and return it."""


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """Return zeros whose first byte lies on a 64-byte line, as the SIMD kernels need."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(count + LINE, dtype=np.uint8)
    offset = -raw.ctypes.data % LINE
    return raw[offset : offset + count].view(dtype).reshape(shape)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return an array's address; the caller keeps the array."""
    return ctypes.c_void_p(array.ctypes.data)
