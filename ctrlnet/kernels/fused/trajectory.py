"""What a forward sweep leaves for the sweeps that follow."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ctrlnet.kernels.code.arrays import LINE

__all__ = ["FusedTrajectory"]


class _TrajectoryArgument(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("states", "kept")] + [
        (name, ctypes.c_ssize_t) for name in ("state", "keep")
    ] + [("rows", ctypes.c_int)]


@dataclass
class FusedTrajectory:
    """What a forward sweep leaves for the sweeps that follow.

    Parameters
    ----------
    states
        ``Y_k`` as (layers + 1, nodes with ghosts, C, images); two rows only if ``kept`` is None.
    kept
        ``sigma(Z_k)`` or ``Z_k`` (the activation says which), or in a tangent sweep ``dZ_k``, as
        (layers, owned nodes, C, images).
    owned
        Number of nodes of this rank.
    """

    states: np.ndarray
    kept: np.ndarray | None
    owned: int

    @property
    def initial(self) -> np.ndarray:
        """Owned rows of the state at time 0, a view (owned nodes, C, images)."""
        return self.states[0, : self.owned]

    @property
    def final(self) -> np.ndarray:
        """Owned rows of the last state, a view; where all states are kept."""
        return self.states[-1, : self.owned]

    def complete(self, k: int) -> list[np.ndarray]:
        """All that state k consists of, as owned rows; a system of several parts has several."""
        return [self.states[k, : self.owned]]

    @property
    def images(self) -> int:
        return self.states.shape[-1]

    @cached_property
    def c_struct(self) -> _TrajectoryArgument:
        """The C structure of bare pointers that the kernels take."""
        kept = (None, 0) if self.kept is None else (self.kept.ctypes.data, self.kept.strides[0] // LINE)
        return _TrajectoryArgument(
            self.states.ctypes.data, kept[0], self.states.strides[0] // LINE, kept[1], self.states.shape[0])

    @property
    def pointer(self) -> Any:
        """A reference to :attr:`c_struct`, an argument of the kernels."""
        return ctypes.byref(self.c_struct)

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + (0 if self.kept is None else self.kept.nbytes)
