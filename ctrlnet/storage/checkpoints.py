"""What a training leaves on disk while it runs, to go on from after its process has died."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrlnet.storage.atomic import on_root, try_to_write, written_whole
from ctrlnet.storage.trees import read_tree, write_tree

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Checkpoint", "checkpoint_of"]

FORMAT = 1
_KIND = "checkpoint of a training"
_SHARE = 0.01  # of the time of a run that writing may take


@dataclass
class Checkpoint:
    """Where a training leaves what it needs to go on, how often, and whether it goes on from there.

    A run that was killed at any moment, and is started again with ``resume``, gives the iterates of a run that was not:
    the same script, data and number of ranks.

    Parameters
    ----------
    path
        Of the file, in a folder that exists. The file before the last stays as ``path.1``.
    seconds
        Write after the first iteration that ends so much later than the last write, and never so often that writing
        takes more than a hundredth of the time.
    iterations
        Write after every so many iterations instead.
    resume
        Go on from the file, if there is one; else it is written over.

    Attributes
    ----------
    spent, longest
        Seconds that writing has taken in all, and the most that it took once.

    Raises
    ------
    ValueError
        If a number is not positive. In a training: if the file is one of another run.
    """

    path: str | Path
    seconds: float = 30.0
    iterations: int | None = None
    resume: bool = False
    _last: float = field(default_factory=time.perf_counter, init=False, repr=False)
    spent: float = field(default=0.0, init=False, repr=False)
    longest: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0 or (self.iterations is not None and not self.iterations >= 1):
            raise ValueError(
                "A checkpoint is written after a positive number of seconds or iterations, received "
                f"seconds={self.seconds!r}, iterations={self.iterations!r}.")

    def read(self, comm: MPI.Comm) -> dict[str, Any] | None:
        """Return what the file holds, on every rank; None where there is none, or no resumption is asked for.

        Of a file that cannot be read, the one before it is taken, with a warning. The folder is tried: it must take a
        file.

        Raises
        ------
        OSError
            If no file can be written there.
        ValueError
            If neither can be read, or one is of a newer format.
        """
        try_to_write(self.path, comm)
        return on_root(comm, self._newest) if self.resume else None

    def _newest(self) -> dict[str, Any] | None:
        path = Path(self.path)
        before = path.with_name(f"{path.name}.1")
        if not path.exists() and not before.exists():
            return None
        try:
            return read_tree(path, _KIND, FORMAT)
        except (OSError, ValueError) as error:
            if not before.exists():
                raise
            warnings.warn(f"{error} Going on from {before}.", stacklevel=2)
            return read_tree(before, _KIND, FORMAT)

    def due(self, iterations: int, comm: MPI.Comm) -> bool:
        """Whether it is time to write, ``iterations`` after the last time; the same on every rank."""
        if self.iterations is not None:
            return iterations >= self.iterations
        passed = time.perf_counter() - self._last
        return comm.bcast(passed >= max(self.seconds, self.longest / _SHARE))

    def write(self, tree: Mapping[str, Any], comm: MPI.Comm, own: Mapping[str, Any] | None = None) -> None:
        """Write what to go on from, whole or not at all; warn if it cannot be written. Collective.

        A full disk is no reason to lose the training: it goes on, and the file before stays.

        Parameters
        ----------
        tree
            The first rank's is taken; see :func:`~ctrlnet.storage.trees.write_tree`.
        comm
            All ranks.
        own
            What each rank has of its own; :meth:`read` gives it as ``ranks``, by the ranks' numbers.
        """
        began = time.perf_counter()
        parts = comm.gather({} if own is None else own)
        try:
            with written_whole(self.path, comm, keep=2) as part:
                if comm.rank == 0:
                    ranks = {str(rank): part_of for rank, part_of in enumerate(parts)}
                    write_tree(part, _KIND, FORMAT, {**tree, "ranks": ranks})
        except OSError as error:
            if comm.rank == 0:
                warnings.warn(f"The checkpoint {self.path} could not be written ({error}); the training goes on.",
                              stacklevel=2)
        self._last = time.perf_counter()
        self.spent += self._last - began
        self.longest = max(self.longest, self._last - began)


def checkpoint_of(given: Checkpoint | str | Path | None) -> Checkpoint | None:
    """Return a checkpoint from one, or from the path of one with the default times."""
    return Checkpoint(given) if isinstance(given, str | Path) else given
