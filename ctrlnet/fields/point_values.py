"""Inputs that are values at points: scattered stations, or a grid of latitudes and longitudes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
from firedrake.functionspaceimpl import WithGeometry
from scipy import sparse

from ctrlnet.fields.inputs import Inputs, with_missing
from ctrlnet.fields.interpolation import checked_grid, on_grid, scattered
from ctrlnet.fields.stores import Rows

__all__ = ["PointMap", "PointValues"]

# Space -> weights (owned nodes, points), whose rows sum to one.
Interpolation = Callable[[WithGeometry], sparse.csr_array]


class PointValues:
    r"""Inputs of q channels given by their values at points, the same points for all of them.

    A node takes the linear interpolant of the points of the triangle (Delaunay's; on a sphere that of directions) that
    it lies in, and outside of all triangles the value of the nearest point; on a grid of latitudes and longitudes the
    bilinear one. Constants are kept.

    Parameters
    ----------
    points
        (p, dim), in the mesh's coordinates; every rank gives all of them.
    values
        (n, q, p), or (n, p) for one channel; also a memory map or a dataset of h5py.
    mask
        (n, p), true where a value is known.

    Raises
    ------
    ValueError
        For arrays of other shapes, or values that are not finite: at once where they are in memory and else when they
        are read. In :meth:`onto`, if points lie outside of the mesh.
    """

    def __init__(self, points: Any, values: Any, mask: Any = None):
        points = np.asarray(points, dtype=float)
        if points.ndim != 2 or 0 in points.shape or not np.isfinite(points).all():
            raise ValueError(f"Points are finite numbers (p, dim), received shape {points.shape}.")
        stored, count = Rows(values, "inputs"), len(points)
        if len(stored.shape) not in (2, 3) or stored.shape[-1] != count or 0 in stored.shape:
            raise ValueError(f"Values at {count} points are (n, channels, {count}), received shape {stored.shape}.")
        channels = 1 if len(stored.shape) == 2 else stored.shape[1]
        self._fill(stored, channels, (count,), mask, partial(scattered, points))

    def _fill(
        self, stored: Rows, channels: int, shape: tuple[int, ...], mask: Any, interpolation: Interpolation
    ) -> None:
        self._values, self.channels, self._interpolation = stored, channels, interpolation
        self._mask = None if mask is None else Rows(mask, "masks")
        if self._mask is not None and (self._mask.shape != (len(stored), *shape) or self._mask.dtype != bool):
            raise ValueError(
                f"A mask is boolean, one entry an input and point: {(len(stored), *shape)}; received "
                f"{self._mask.dtype} of shape {self._mask.shape}.")
        if self._values.in_memory:
            self.values(0, len(self))

    @classmethod
    def latitude_longitude(cls, latitudes: Any, longitudes: Any, values: Any, mask: Any = None) -> PointValues:
        """Return inputs on a grid of a globe around the origin, its axis that of z.

        Parameters
        ----------
        latitudes
            (rows,) in degrees, -90 to 90, increasing or decreasing. Beyond the last one towards a pole, the mean of
            that row at the pole.
        longitudes
            (columns,) in degrees, increasing, over less than 360: the grid closes around the globe.
        values, mask
            (n, q, rows, columns) or (n, rows, columns), and (n, rows, columns).

        Raises
        ------
        ValueError
            If the grid is no such one, and as the class does.
        """
        lat, lon = checked_grid(latitudes, longitudes)
        stored, shape = Rows(values, "inputs"), (len(lat), len(lon))
        if len(stored.shape) not in (3, 4) or stored.shape[-2:] != shape or 0 in stored.shape:
            raise ValueError(
                f"Values on a grid of {shape[0]} latitudes and {shape[1]} longitudes are (n, channels, {shape[0]}, "
                f"{shape[1]}), received shape {stored.shape}.")
        out, channels = object.__new__(cls), 1 if len(stored.shape) == 3 else stored.shape[1]
        out._fill(stored, channels, shape, mask, partial(on_grid, lat, lon))
        return out

    def __len__(self) -> int:
        return len(self._values)

    @property
    def pixels(self) -> tuple[int, ...]:
        raise ValueError("These inputs are values at points, which have no pixels.")

    @property
    def space(self) -> WithGeometry:
        raise ValueError("These inputs are values at points, no nodal values: they have no finite-element space.")

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
        known = known.reshape(len(known), 1, -1)
        return np.broadcast_to(known, (len(known), self.channels, known.shape[2]))

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out._values = self._values.chosen(numbers)
        out._mask = None if self._mask is None else self._mask.chosen(numbers)
        return out

    def with_values(self, values: np.ndarray) -> Self:
        out = copy.copy(self)
        out._values = Rows(values, "inputs")
        return out

    def averaged(self, factor: int) -> PointValues:
        raise ValueError("Values at points have no pixels to average; a coarser mesh takes them as they are.")

    def onto(self, V: WithGeometry) -> PointMap:
        return PointMap(V, self._interpolation(V))


class PointMap:
    """The :class:`~ctrlnet.fields.inputs.NodalMap` of values at points.

    Parameters
    ----------
    V
        Scalar space.
    matrix
        (nodes owned by this rank, points), with rows that sum to one.
    """

    def __init__(self, V: WithGeometry, matrix: sparse.csr_array):
        self.V, self.matrix = V, matrix

    def check(self, inputs: Inputs) -> None:
        points = inputs.values(0, 1).shape[2:]
        if points != self.matrix.shape[1:]:
            raise ValueError(f"This map takes values at {self.matrix.shape[1]} points, received inputs of {points}.")

    def nodal(self, inputs: Inputs, start: int, stop: int) -> np.ndarray:
        """Return the nodal values (owned nodes, q, n) of some inputs."""
        return with_missing(self._apply, inputs.values(start, stop), inputs.known(start, stop))

    def _apply(self, values: np.ndarray) -> np.ndarray:
        count, channels, points = values.shape
        columns = np.ascontiguousarray(np.moveaxis(values, 2, 0).swapaxes(1, 2))
        return (self.matrix @ columns.reshape(points, -1)).reshape(-1, channels, count)
