"""Ghost rows of a distributed field of rows (nodes first, any number of values a node)."""

from __future__ import annotations

from functools import cache

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["Halo", "destroy_what_waits"]


# One object of all ranks, from the first halo that they share until Python ends.
_KEPT: list[PETSc.IS] = []


def _keep_all_until_the_end(comm: MPI.Comm) -> None:
    """Make all ranks take part in PETSc's last cleaning up. Collective.

    PETSc's finalisation destroys together what waits on its COMM_WORLD (Firedrake's is a copy), but only on ranks
    where something waits there; the others would leave, and those wait for ever. What waits differs, because Python
    lets go of things at different times. An object that every rank keeps to the end waits on all of them.
    """
    if not _KEPT and MPI.Comm.Compare(comm, PETSc.COMM_WORLD.tompi4py()) in (MPI.IDENT, MPI.CONGRUENT):
        _KEPT.append(PETSc.IS().createGeneral(np.zeros(0, dtype=PETSc.IntType), comm=PETSc.COMM_WORLD))


def destroy_what_waits(comm: MPI.Comm) -> None:
    """Destroy what PETSc holds on several ranks and Python has let go of: it waits until all do so. Collective.

    Called where operators, transfers and readouts are made and where iterations end, so that no process grows with
    their number.
    """
    if comm.size > 1:
        PETSc.garbage_cleanup(comm)


class Halo:
    """Copies owned rows into the ghost rows of other ranks.

    A field is a C-contiguous array whose first axis runs over the owned nodes and then the ghosts.
    Firedrake's own halo does not do: it holds the nodes of a rank's cells, while a row of an assembled
    operator reaches every neighbour of an owned node, on whichever rank its cell lies.

    Parameters
    ----------
    comm
        The mesh's communicator.
    owned
        Number of nodes owned by this rank; global numbers are contiguous by rank.
    ghost_numbers
        Sorted global numbers of the nodes to receive.
    """

    def __init__(self, comm: MPI.Comm, owned: int, ghost_numbers: np.ndarray):
        self.comm = comm
        self.owned = owned
        self.ghosts = int(ghost_numbers.size)
        self._forest: PETSc.SF | None = None
        if comm.size > 1:
            destroy_what_waits(comm)
            _keep_all_until_the_end(comm)
            ends = np.cumsum(comm.allgather(owned))
            rank = np.searchsorted(ends, ghost_numbers, side="right")
            begin = np.concatenate([[0], ends])[rank]
            remote = np.stack([rank, ghost_numbers - begin], axis=1).astype(PETSc.IntType)
            local = np.arange(owned, owned + self.ghosts, dtype=PETSc.IntType)
            self._forest = PETSc.SF().create(comm=comm)
            self._forest.setGraph(owned, local, remote.reshape(-1))

    def update(self, field: np.ndarray) -> None:
        """Fill the ghost rows of ``field`` (owned + ghosts, ...) from their owners. Collective."""
        if self._forest is None:
            return
        unit = _row_type(field.strides[0])
        flat = field.reshape(-1).view(np.uint8)
        self._forest.bcastBegin(unit, flat, flat, MPI.REPLACE)
        self._forest.bcastEnd(unit, flat, flat, MPI.REPLACE)


@cache
def _row_type(row_bytes: int) -> MPI.Datatype:
    """Return the type of a row of so many bytes; all halos share it, since MPI frees none by itself."""
    return MPI.BYTE.Create_contiguous(row_bytes).Commit()
