"""One named control: a function space, and its degrees of freedom as an array that is the same on every rank."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from firedrake import Cofunction, Function
from firedrake.functionspaceimpl import FiredrakeDualSpace, WithGeometry

__all__ = ["DistributedPart", "Part", "ReplicatedPart"]


class Part(Protocol):
    r"""A control u in a space V, and the array (rows, components) of its degrees of freedom.

    A row is a node of V's scalar space, a column a component of V. A Function in V and a Cofunction in V* are read and
    written alike; every rank sees all rows.
    """

    name: str
    space: WithGeometry
    dual: FiredrakeDualSpace
    rows: int
    components: int

    def values(self, function: Function | Cofunction) -> np.ndarray:
        """Return the degrees of freedom, (rows, components), on every rank; possibly a view, not to be written to."""

    def write(self, target: Function | Cofunction, values: np.ndarray) -> None:
        """Write degrees of freedom, as many numbers as rows times components, into a Function or a Cofunction."""


class ReplicatedPart:
    """A control on a mesh of ``COMM_SELF``: every rank holds the whole of it.

    Parameters
    ----------
    name
        What it is called among the controls.
    space
        A scalar or vector space.
    """

    def __init__(self, name: str, space: WithGeometry):
        self.name, self.space, self.dual = name, space, space.dual()
        self.rows, self.components = space.dof_dset.size, space.value_size

    def values(self, function: Function | Cofunction) -> np.ndarray:
        return function.dat.data_ro.reshape(self.rows, self.components)

    def write(self, target: Function | Cofunction, values: np.ndarray) -> None:
        data = target.dat.data_wo
        data[:] = values.reshape(data.shape)


class DistributedPart:
    """A control on a mesh that is split over ranks: its rows are gathered in the order of the ranks.

    Parameters
    ----------
    name, space
        See :class:`ReplicatedPart`.

    Attributes
    ----------
    first
        Number of this rank's first row.
    """

    def __init__(self, name: str, space: WithGeometry):
        self.name, self.space, self.dual = name, space, space.dual()
        self._comm = space.mesh().comm
        self._counts = np.array(self._comm.allgather(space.dof_dset.size))
        self.first = int(self._counts[: self._comm.rank].sum())
        self.rows, self.components = int(self._counts.sum()), space.value_size

    def values(self, function: Function | Cofunction) -> np.ndarray:
        own = function.dat.data_ro.reshape(-1, self.components)
        if self._comm.size == 1:
            return own
        out = np.empty((self.rows, self.components))
        self._comm.Allgatherv(np.ascontiguousarray(own), (out, self._counts * self.components))
        return out

    def write(self, target: Function | Cofunction, values: np.ndarray) -> None:
        own = values.reshape(self.rows, self.components)[self.first : self.first + self._counts[self._comm.rank]]
        data = target.dat.data_wo
        data[:] = own.reshape(data.shape)
