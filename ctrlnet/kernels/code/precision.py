"""The two precisions of states and of their arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.kernels.code.arrays import LINE

__all__ = ["DOUBLE", "SINGLE", "Precision", "precision_of"]


@dataclass(frozen=True)
class Precision:
    """A type of numbers, as NumPy and C name it."""

    name: str
    dtype: np.dtype

    @property
    def single(self) -> bool:
        return self.dtype.itemsize == 4

    @property
    def lanes(self) -> int:
        """Numbers of a SIMD vector."""
        return LINE // self.dtype.itemsize


DOUBLE, SINGLE = Precision("double", np.dtype(np.float64)), Precision("single", np.dtype(np.float32))


def precision_of(name: str) -> Precision:
    """Return a precision by its name.

    Raises
    ------
    ValueError
        If it is neither ``"double"`` nor ``"single"``.
    """
    for known in (DOUBLE, SINGLE):
        if name == known.name:
            return known
    raise ValueError(f"precision must be 'double' or 'single', received {name!r}.")
