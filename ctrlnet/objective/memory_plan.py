"""What a sample average keeps for its derivatives, within a limit of memory."""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

from ctrlnet.kernels.sweep import Sweep

__all__ = ["MemoryPlan"]

# Fields that a checkpointed adjoint holds besides its snapshots.
_OWN_FIELDS = 8


@dataclass(frozen=True)
class MemoryPlan:
    """The trajectories of the first chunks are kept; the others share one storage and are propagated again.

    Parameters
    ----------
    kept
        Number of chunks whose trajectories are kept.
    chunks
        Number of all chunks, the largest over all ranks.
    snapshots
        None, or where not even one chunk's trajectory fits: how many of its states are stored for the adjoint.
    """

    kept: int
    chunks: int
    snapshots: int | None = None

    @property
    def keeps_all(self) -> bool:
        return self.kept >= self.chunks

    @classmethod
    def within(
        cls, limit: int, taken: int, sweep: Sweep, steps: int, images: int, chunks: int, comm: MPI.Comm
    ) -> MemoryPlan:
        """Return the plan for ``chunks`` chunks of ``images`` images in ``limit`` bytes a rank. Collective.

        ``taken`` bytes of the limit are in use already, by kept inputs and targets.
        """
        limit -= comm.allreduce(taken, op=MPI.MAX)
        trajectory, state = (comm.allreduce(sweep.trajectory_bytes(n, images), op=MPI.MAX) for n in (steps, 0))
        chunks = comm.allreduce(chunks, op=MPI.MAX)
        if trajectory > limit:
            return cls(0, chunks, max(1, limit // state - _OWN_FIELDS))
        fitting = limit // trajectory
        return cls(chunks if fitting >= chunks else fitting - 1, chunks)
