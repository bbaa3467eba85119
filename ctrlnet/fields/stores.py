"""Arrays of one row a sample's entry, in memory or in a file, read slice by slice."""

from __future__ import annotations

import mmap
from typing import Any

import h5py
import numpy as np

__all__ = ["Rows"]


class Rows:
    """The rows of an array, or some of them in an order of one's own; only what is asked for is read.

    Parameters
    ----------
    array
        A NumPy array, also a memory map; a dataset of h5py; or what NumPy makes an array of.
    what
        Its name in messages.
    numbers
        Of the rows. Default: all.

    Raises
    ------
    ValueError
        If it is no array of numbers.
    """

    def __init__(self, array: Any, what: str, numbers: np.ndarray | None = None):
        if not isinstance(array, np.ndarray | h5py.Dataset):
            array = np.asarray(array)
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ValueError(
                f"{what} must be an array of numbers with one entry a row, received {array.dtype} of shape "
                f"{array.shape}. Convert it with np.asarray(..., dtype=float).")
        self.array, self.what, self._numbers = array, what, numbers

    def __len__(self) -> int:
        return self.array.shape[0] if self._numbers is None else len(self._numbers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read from a file."""
        return type(self.array) is np.ndarray and not isinstance(self.array.base, np.memmap)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows ``start`` to ``stop`` as an array of this machine's byte order; perhaps a view."""
        if self._numbers is None:
            found = self.array[start:stop]
        elif isinstance(self.array, h5py.Dataset):  # which takes increasing numbers alone
            numbers, place = np.unique(self._numbers[start:stop], return_inverse=True)
            found = self.array[numbers][place] if numbers.size else self.array[:0]
        else:
            found = self.array[self._numbers[start:stop]]
        found = np.asarray(found)
        if isinstance(self.array, np.memmap) and self.array.mode == "r":
            # Pages that were read would stay resident until memory is short: a file of any size may pass through.
            found = found.copy()
            vars(self.array)["_mmap"].madvise(mmap.MADV_DONTNEED)
        return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))

    def chosen(self, numbers: np.ndarray) -> Rows:
        """Return some of these rows, in the order of their numbers."""
        numbers = np.asarray(numbers)
        return Rows(self.array, self.what, numbers if self._numbers is None else self._numbers[numbers])

    def check_finite(self, values: np.ndarray, start: int = 0) -> None:
        """Raise a ValueError that counts the rows of values read from ``start`` that are not finite."""
        if values.dtype.kind != "f":
            return
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {bad.size} {self.what} hold NaN or infinite values, the first is number "
                f"{start + int(np.argmax(bad))}. Remove or repair them, or mask what is missing.")
