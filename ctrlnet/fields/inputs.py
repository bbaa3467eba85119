r"""What a sample's inputs are: n fields of q channels, and their map to the nodes of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI

__all__ = ["Inputs", "NodalMap", "with_missing"]


class Inputs(Protocol):
    """n fields of q channels, read as they are needed.

    Attributes
    ----------
    channels
        q.
    """

    channels: int

    def __len__(self) -> int: ...

    @property
    def pixels(self) -> tuple[int, ...]:
        """Pixels along each axis. Raises a ValueError where there are none."""

    @property
    def space(self) -> WithGeometry:
        """Space whose nodal values these are. Raises a ValueError where there is none."""

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return fields ``start`` to ``stop`` as floats, (n, q, ...); 0 where they are missing.

        Raises
        ------
        ValueError
            If one is not finite.
        """

    def known(self, start: int, stop: int) -> np.ndarray | None:
        """Return which of :meth:`values` are known, of their shape; None for all."""

    def chosen(self, numbers: np.ndarray) -> Inputs:
        """Return the fields of the given numbers, in their order."""

    def with_values(self, values: np.ndarray) -> Inputs:
        """Return inputs of the same kind with other values (n, q, ...).

        Raises
        ------
        ValueError
            If the values are split over ranks, so that a draw of all of them is no draw of one rank.
        """

    def averaged(self, factor: int) -> Inputs:
        """Return the fields with ``factor`` pixels along each axis averaged into one.

        Raises
        ------
        ValueError
            If there are no pixels, or their counts are not multiples of ``factor``.
        """

    def onto(self, V: WithGeometry) -> NodalMap:
        """Return the map to the nodal values of a space that these inputs have by default. Collective."""


class NodalMap(Protocol):
    r"""A linear map from inputs of one kind to nodal values, which keeps constants.

    Attributes
    ----------
    V
        Scalar space of the nodes.
    """

    V: WithGeometry

    def check(self, inputs: Inputs) -> None:
        """Raise a ValueError if the inputs are not of this kind."""

    def nodal(self, inputs: Inputs, start: int, stop: int) -> np.ndarray:
        """Return the nodal values (owned nodes, q, n), n = stop - start, of some inputs. Collective."""


def with_missing(
    apply: Callable[[np.ndarray], np.ndarray], values: np.ndarray, known: np.ndarray | None,
    comm: MPI.Comm | None = None,
) -> np.ndarray:
    r"""Return T x where some values are missing: :math:`(T m x) / (T m)`, m 1 where x is known and else 0.

    A constant stays what it is. Where T sees nothing that is known, the mean of the field's known values stands in.

    Parameters
    ----------
    apply
        T, with rows that sum to one: (n, q, ...) -> (owned, q, n).
    values, known
        x and m, (n, q, ...); 0 where it is not known.
    comm
        The ranks that have parts of x; None where every rank has the whole.

    Raises
    ------
    ValueError
        If nothing of a field is known.
    """
    if known is None:
        return apply(values)
    m = known.astype(float)
    axes = tuple(range(2, values.ndim))
    sums = np.stack([values.sum(axis=axes), m.sum(axis=axes)])
    if comm is not None:
        comm.Allreduce(MPI.IN_PLACE, sums)
    if not (sums[1] > 0).all():
        number, channel = np.argwhere(sums[1] <= 0)[0]
        raise ValueError(
            f"The mask leaves nothing of an input: number {number} of those asked for, channel {channel}. Leave the "
            "input out, or mend its mask.")
    mean = (sums[0] / sums[1]).T
    seen = apply(m)
    return np.where(seen > 1e-12, apply(values) / np.maximum(seen, 1e-12), mean)
