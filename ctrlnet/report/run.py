"""One run of a script: what it says, and what it leaves behind."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ctrlnet.report.progress import LevelProgress, Progress
from ctrlnet.report.results import RESULTS, write_results
from ctrlnet.report.tables import Column, Table

if TYPE_CHECKING:
    from mpi4py import MPI

    from ctrlnet.storage.checkpoints import Checkpoint
    from ctrlnet.storage.history import History, Iteration

__all__ = ["Run"]

Result = TypeVar("Result")


class Run:
    """The words, bars, tables and figures of a script: rank 0 prints and writes, the others keep silent.

    The folder is made, and a file in it tried, at once: a script that could not leave its results ends with exit status
    2 before it computes anything. One that was interrupted ends with 130, one that could not write or draw everything
    with 1; what there is, is on disk in any case.

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
        self._missing: list[str] = []  # what could not be drawn or written, on rank 0
        self._handlers: dict[int, Any] = {}  # what the signals did before
        self._try_folder()
        self._handle_signals()

    def _try_folder(self) -> None:
        from ctrlnet.storage.atomic import on_root, try_to_write  # here, because its room imports Firedrake

        try:
            on_root(self.comm, lambda: self.folder.mkdir(parents=True, exist_ok=True))
            try_to_write(self.folder / RESULTS, self.comm)
        except OSError as error:
            if self.root:
                print(f"The results cannot be written to {self.folder}: {error}. Give another folder by --output.",
                      file=sys.stderr)
            raise SystemExit(2) from error

    def checkpoint(self, name: str) -> Checkpoint:
        """Return what a training of this script goes on from, if the script is started again with ``--resume``.

        Parameters
        ----------
        name
            Of the training, a different one for each; what is no letter becomes an underscore in the file's name.
        """
        from ctrlnet.storage.atomic import on_root
        from ctrlnet.storage.checkpoints import Checkpoint

        folder = self.folder / "checkpoints"
        on_root(self.comm, lambda: folder.mkdir(exist_ok=True))
        plain = "".join(c if c.isalnum() or c in "-+." else "_" for c in name)
        return Checkpoint(folder / f"{plain}.h5", seconds=self.settings["checkpoint"], resume=self.settings["resume"])

    def trained(self, *histories: History) -> None:
        """Say that trainings have ended; if one was interrupted, so does the script, with what there is on disk."""
        if not any(history.reason == "interrupted" for history in histories):
            return
        self.say("\ninterrupted")
        self._write(histories=[history.as_dict() for history in histories])
        self._say_what_is_kept(f", the figures so far in {self.folder}/{RESULTS}")
        self._restore_signals()
        raise SystemExit(130)

    def _say_what_is_kept(self, more: str = "") -> None:
        kept = any((self.folder / "checkpoints").glob("*.h5"))
        self.say(f"What was trained is in {self.folder}/checkpoints/{more}; --resume goes on." if kept
                 else "Nothing was trained yet.")

    def _handle_signals(self) -> None:
        """Answer Ctrl-C and SIGTERM outside of a training, where nothing is put off, by words and exit status 130."""
        from ctrlnet.storage.interruption import SIGNALS

        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._end) for number in SIGNALS}

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._restore_signals()  # a second one ends at once
        self.say("\ninterrupted")
        self._say_what_is_kept()
        raise SystemExit(130)

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def figure(self, name: str, plot: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Draw a figure by a function of :mod:`ctrlnet.report`, on rank 0; go on if it cannot be drawn."""
        if self.root:
            try:
                plot(self.folder / name, *arguments, **options)
            except Exception as error:
                self._missing.append(f"{name} ({type(error).__name__}: {error})")

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

    def file(self, name: str, write: Callable[..., Any], *arguments: Any) -> None:
        """Write a file by a function of :mod:`ctrlnet.storage`; go on if there is no room for it. Collective."""
        try:
            write(self.folder / name, *arguments)
        except OSError as error:
            self._missing.append(f"{name} ({error})")

    def _write(self, **extra: Any) -> None:
        try:
            write_results(self.folder, self.figures, self.settings, self.comm, **extra)
        except OSError as error:
            self._missing.append(f"{RESULTS} ({error})")

    def finish(self, said: str = "Figures and results.json", **extra: Any) -> Path:
        """Write figures, settings, versions and further plain data to ``results.json``; say where.

        Raises
        ------
        SystemExit
            With status 1, if a figure could not be drawn or the results not written.
        """
        self._write(**extra)
        self._restore_signals()
        self.say(f"{said}: {self.folder}/")
        missing = self.comm.bcast(self._missing)
        if missing:
            self.say(f"Not written: {'; '.join(missing)}")
            raise SystemExit(1)
        return self.folder / RESULTS
