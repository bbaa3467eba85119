"""Inputs that are nodal values of a finite-element space."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from firedrake import Function
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.fields.nodal_transfer import NodalTransfer, values_of_functions
from ctrlnet.fields.stores import Rows

__all__ = ["NodalValues"]


class NodalValues:
    """Inputs of q channels given by their values at the nodes of a space.

    On another mesh of the hierarchy they are interpolated or restricted: see
    :class:`~ctrlnet.fields.nodal_transfer.NodalTransfer`.

    Parameters
    ----------
    V
        Scalar space.
    values
        (n, q, nodes that this rank owns), or (n, owned nodes) for one channel; also a memory map or a dataset of h5py.
    mask
        (n, owned nodes), true where the values are known.

    Raises
    ------
    ValueError
        For values of another shape, another mask, or values that are not finite: at once where they are in memory and
        else when they are read.
    """

    def __init__(self, V: WithGeometry, values: Any, mask: Any = None):
        self.space = V
        self._values = Rows(values, "inputs")
        self._mask = None if mask is None else Rows(mask, "masks")
        shape, owned = self._values.shape, V.dof_dset.size
        if len(shape) not in (2, 3) or shape[-1] != owned or 0 in shape[:-1]:
            raise ValueError(
                f"Nodal values are (n, channels, owned nodes) with the {owned} nodes that this rank owns, received "
                f"shape {shape}. The nodes are those of Function(V).dat.data_ro.")
        if self._mask is not None and (self._mask.shape != (shape[0], owned) or self._mask.dtype != bool):
            raise ValueError(
                f"A mask is boolean, one entry an input and node: ({shape[0]}, {owned}); received {self._mask.dtype} "
                f"of shape {self._mask.shape}.")
        self.channels = 1 if len(shape) == 2 else shape[1]
        if self._values.in_memory:
            self.values(0, len(self))

    @classmethod
    def of_functions(cls, functions: Sequence[Function], mask: Any = None) -> NodalValues:
        """Return the inputs that are Functions of one space: a scalar one, or one of q components, the channels."""
        return cls(*values_of_functions(functions), mask)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def pixels(self) -> tuple[int, ...]:
        raise ValueError("These inputs are nodal values, which have no pixels.")

    def values(self, start: int, stop: int) -> np.ndarray:
        found = self._values.read(start, stop)
        found = found.astype(float).reshape(len(found), self.channels, -1)
        known = self.known(start, stop)
        if known is not None:
            found = np.where(known, found, 0.0)
        self._values.check_finite(found, start)
        return found

    def known(self, start: int, stop: int) -> np.ndarray | None:
        if self._mask is None:
            return None
        known = self._mask.read(start, stop)
        return np.broadcast_to(known[:, None], (len(known), self.channels, known.shape[1]))

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out._values = self._values.chosen(numbers)
        out._mask = None if self._mask is None else self._mask.chosen(numbers)
        return out

    def with_values(self, values: np.ndarray) -> NodalValues:
        raise ValueError(
            "Nodal values are split over ranks, and random changes of them would depend on how. Change the values "
            "before they are given, or take Pixels or PointValues.")

    def averaged(self, factor: int) -> NodalValues:
        raise ValueError("Nodal values have no pixels to average; on a coarser mesh they are restricted by themselves.")

    def onto(self, V: WithGeometry) -> NodalTransfer:
        return NodalTransfer(self.space, V)
