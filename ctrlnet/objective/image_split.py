"""Who has which images: ensemble members split the sample, the ranks of a mesh split each chunk's scores."""

from __future__ import annotations

import numpy as np
from firedrake import Ensemble
from mpi4py import MPI

from ctrlnet.errors import PropagationError

__all__ = ["ImageSplit"]


class ImageSplit:
    """The images of this ensemble member, and sums over all ranks.

    Parameters
    ----------
    count
        Images of the whole sample.
    mesh_comm
        Communicator of the network's mesh.
    ensemble
        Its members share the images out; None for one member, the mesh's ranks.

    Attributes
    ----------
    count
        Images of the whole sample.
    comm
        All ranks.
    first, last
        This member has the images ``first`` to ``last - 1``.

    Raises
    ------
    ValueError
        If the mesh does not live on the ensemble's spatial communicator.
    """

    def __init__(self, count: int, mesh_comm: MPI.Comm, ensemble: Ensemble | None = None):
        self.count, self.mesh_comm, self.ensemble = count, mesh_comm, ensemble
        self.comm = mesh_comm if ensemble is None else ensemble.global_comm
        member, members = (0, 1) if ensemble is None else (ensemble.ensemble_rank, ensemble.ensemble_size)
        if ensemble is not None:
            self._check_mesh(mesh_comm, ensemble)
        self._members = members
        self.first, self.last = count * member // members, count * (member + 1) // members

    @staticmethod
    def _check_mesh(mesh_comm: MPI.Comm, ensemble: Ensemble) -> None:
        other = MPI.Comm.Compare(mesh_comm, ensemble.comm) not in (MPI.IDENT, MPI.CONGRUENT)
        if ensemble.global_comm.allreduce(other, op=MPI.LOR):
            raise ValueError(
                f"The network's mesh lives on {mesh_comm.size} rank(s), which are not those of an ensemble member "
                f"({ensemble.comm.size} rank(s)). Build the mesh with comm=ensemble.comm."
            )

    def check_shares(self) -> None:
        """Raise a ValueError if there are fewer images than members, so that some would have no part in a mean."""
        if self.count < self._members:
            raise ValueError(
                f"{self.count} image(s) cannot be shared out among {self._members} ensemble members; use a larger "
                "sample or fewer members.")

    def sum(self, *arrays: np.ndarray) -> None:
        """Sum arrays over all ranks, in place."""
        for array in arrays:
            self.comm.Allreduce(MPI.IN_PLACE, array)

    def check_finite(self, number: float, h: float) -> None:
        """Raise a :class:`~ctrlnet.PropagationError` on all ranks if a number that steps h led to is not finite."""
        if not self.comm.allreduce(bool(np.isfinite(number)), op=MPI.LAND):
            raise PropagationError(
                "The propagation is not finite: the controls are too large for the explicit step "
                f"h = {h:g}. Take more layers, a shorter time or smaller controls.")

    def share(self, count: int) -> slice:
        """Return this rank's share of the ``count`` images of a chunk."""
        comm = self.mesh_comm
        return slice(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)

    def whole_chunk(self, shares: np.ndarray) -> np.ndarray:
        """Return an array (K, images) of a whole chunk from the mesh's ranks' shares."""
        return shares if self.mesh_comm.size == 1 else np.concatenate(self.mesh_comm.allgather(shares), axis=1)

    def whole_sample(self, part: np.ndarray) -> np.ndarray:
        """Return an array (K, images) of the whole sample from the members' parts."""
        return part if self.ensemble is None else np.concatenate(self.ensemble.ensemble_comm.allgather(part), axis=1)
