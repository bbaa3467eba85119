"""One run of a script: what it says, and what it leaves behind."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctrlnet.report.progress import LevelProgress, Progress
from ctrlnet.report.results import write_results
from ctrlnet.report.tables import Column, Table

if TYPE_CHECKING:
    from mpi4py import MPI

    from ctrlnet.storage.history import Iteration

__all__ = ["Run"]

Result = TypeVar("Result")


class Run:
    """The words, bars, tables and figures of a script: rank 0 prints and writes, the others keep silent.

    Parameters
    ----------
    arguments
        Of :class:`~ctrlnet.report.CommandLine`: the settings, with the folder ``output``.
    comm
        The ranks of the run. Default: all.

    Attributes
    ----------
    figures
        name -> number: every number that the run prints, on every rank.
    folder
        Where it writes.
    root
        Whether this is rank 0.
    ranks
        How many there are.
    """

    def __init__(self, arguments: argparse.Namespace, comm: MPI.Comm | None = None) -> None:
        from mpi4py import MPI  # here, because it starts MPI

        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.root, self.ranks = self.comm.rank == 0, self.comm.size
        self.settings, self.folder = vars(arguments), Path(arguments.output)
        self.figures: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print a line."""
        if self.root:
            print(text, flush=True)

    def table(self, *columns: Column) -> Table:
        """Return a table whose numbers enter the figures."""
        return Table(columns, self.figures, self.say)

    def progress(
        self, title: str, total: int | None = None, *, shown: str = "loss", label: str = "",
        position: Callable[[Iteration], int] | None = None, unit: str = "", width: int = 14,
    ) -> Progress:
        """Return a bar; see :class:`~ctrlnet.report.Progress`."""
        return Progress(title, total, shown=shown, label=label, position=position, unit=unit, width=width,
                        visible=self.root)

    def level_progress(self, titles: Sequence[str], totals: Sequence[int], *, width: int = 14) -> LevelProgress:
        """Return a bar for each level; see :class:`~ctrlnet.report.LevelProgress`."""
        return LevelProgress(titles, totals, width=width, visible=self.root)

    def alone(self, compute: Callable[[], Result]) -> Result:
        """Return on every rank what rank 0 computes, on the cores of all ranks, while the others sleep.

        For a comparison with a program that has threads instead of ranks: MPI binds ranks to cores, and those that
        wait in it keep theirs busy.
        """
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, set().union(*self.comm.allgather(cores)))
        result = compute() if self.root else None
        finished = self.comm.Ibarrier()
        while not finished.Test():
            time.sleep(0.1)
        os.sched_setaffinity(0, cores)
        return self.comm.bcast(result)

    def finish(self, said: str = "Figures and results.json", **extra: Any) -> Path:
        """Write figures, settings, versions and further plain data to ``results.json``; say where."""
        path = write_results(self.folder, self.figures, self.settings, self.comm, **extra)
        self.say(f"{said}: {self.folder}/")
        return path
