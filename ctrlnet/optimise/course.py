"""What all optimisers share: the record of their iterations, limits, the best controls, Ctrl-C."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mpi4py import MPI

from ctrlnet.controls import Controls
from ctrlnet.objective.work import Work
from ctrlnet.operators.halo import destroy_what_waits
from ctrlnet.optimise.journal import Journal
from ctrlnet.storage.history import History, Iteration
from ctrlnet.storage.interruption import Interruption

__all__ = ["Callback", "Course", "Limits", "agreed_call"]

Callback = Callable[[Iteration], "bool | None"]

Accuracies = Callable[[Controls], Mapping[str, float]]


@dataclass(frozen=True)
class Limits:
    """When a run ends, whichever comes first.

    Parameters
    ----------
    iterations
        The most iterations; 0 evaluates the start.
    relative_gradient
        End when the gradient norm has fallen by this factor; 0: never.
    work
        End after the iteration in which the counter passes this reading (image-node-layers).
    seconds
        End after the iteration in which this much time has passed.

    Raises
    ------
    ValueError
        If a limit is negative.
    """

    iterations: int = 50
    relative_gradient: float = 0.0
    work: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "relative_gradient", "work", "seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"The limit {name} must not be negative, received {value!r}.")


def agreed_call(callback: Callable[[Any], object], iteration: Any, comm: MPI.Comm) -> bool:
    """Call a user's function; return on every rank whether it returned True on any. Collective.

    What it raises on one rank is raised on all, of several ranks what the first of them raised.
    """
    outcome: Any = False
    try:
        outcome = callback(iteration) is True
    except BaseException as error:  # Ctrl-C too: the others would wait for ever
        outcome = error
    outcomes = [outcome] if comm.size == 1 else comm.allgather(_sendable(outcome))
    for rank, each in enumerate(outcomes):
        if each not in (True, False):
            raise outcome if rank == comm.rank else each
    return any(outcomes)


def _sendable(outcome: Any) -> Any:
    """Return an exception as one that other ranks can be sent."""
    try:
        pickle.loads(pickle.dumps(outcome))
    except Exception:  # whatever a user's class does when it is pickled: the other ranks must hear of it
        return RuntimeError(f"{type(outcome).__name__}: {outcome}")
    return outcome


class Course:
    """The record of one run.

    Parameters
    ----------
    limits, work
        When to end; the counter whose readings are recorded.
    comm
        All ranks: time and Ctrl-C are agreed upon, so that they end together.
    callback
        Called with each :class:`Iteration`, which has the controls; the run ends if it returns True on any rank.
        What it raises is raised on all ranks.
    accuracies
        Returns accuracies by name for the controls of an iteration; its time is not counted.
    journal
        Of the answers; it writes checkpoints after iterations. Default: one without a checkpoint.

    Attributes
    ----------
    history : History
    best : numpy.ndarray
        Coordinates of the iterate with the least objective since :meth:`begin`.
    first : int
        Position in the history of the first iteration since :meth:`begin`.
    """

    def __init__(
        self, limits: Limits, work: Work, comm: MPI.Comm, callback: Callback | None = None,
        accuracies: Accuracies | None = None, journal: Journal | None = None,
    ):
        self.limits, self.work, self.comm = limits, work, comm
        self.journal = Journal(None, comm) if journal is None else journal
        self.history = History()
        self.best: np.ndarray | None = None
        self.least = np.inf
        self._callback, self._accuracies = callback, accuracies
        self._began, self._paused = time.perf_counter(), 0.0
        self._stopped = False
        self._contexts: list[Interruption] = []  # those entered
        self._interruption = Interruption()  # the outermost of them
        self.first = 0

    def begin(self) -> None:
        """Start a run on a sample of its own; its objectives are not comparable with those before."""
        self.first, self.least = len(self.history.iterations), np.inf

    @property
    def seconds(self) -> float:
        """Time since the start, without that of what is not counted."""
        return time.perf_counter() - self._began - self._paused

    def go_on(
        self, iterations: list[Iteration], best: np.ndarray, counts: Mapping[str, float], seconds: float
    ) -> None:
        """Continue the record of a run whose process has died."""
        self.history.iterations.extend(iterations)
        self.best, self.least = best, min((i.objective for i in iterations), default=np.inf)
        self.work.counts.update(counts)
        self._began, self._paused = time.perf_counter() - seconds, 0.0

    def record(
        self, x: np.ndarray, controls: Callable[[], Controls], objective: float, loss: float,
        gradient_norm: float, step: float, number: int, krylov: int = 0, images: int = 0,
    ) -> None:
        """Note an iterate; see :class:`Iteration`."""
        destroy_what_waits(self.comm)

        def measured() -> Iteration:
            seconds, accuracies = self.seconds, {}
            if self._accuracies is not None:
                with self.uncounted():
                    accuracies = dict(self._accuracies(controls()))
            return Iteration(
                number, float(objective), float(loss), float(gradient_norm), float(step),
                self.work.total, seconds, krylov, dict(self.work.counts), accuracies, images)

        iteration, live = self.journal.row(measured)
        if objective < self.least:
            self.least, self.best = objective, x.copy()
        self.history.append(iteration)
        if not live:  # the clock and the counter go on from what the file says
            self._began, self._paused = time.perf_counter() - iteration.seconds, 0.0
            self.work.counts.update(iteration.sweeps)
        elif self._callback is not None:
            with self.uncounted():
                self._stopped = agreed_call(self._callback, replace(iteration, controls=controls()), self.comm)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context of what is measured for the record alone: neither its time nor its sweeps count."""
        began, counts = time.perf_counter(), dict(self.work.counts)
        yield
        self.work.counts.update(counts)
        self._paused += time.perf_counter() - began

    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM came on any rank. Collective."""
        return bool(self.comm.allreduce(int(self._interruption.came), op=MPI.MAX))

    def reason_to_stop(self, run: Limits | None = None) -> str | None:
        """Return why it is time to end, the same on every rank, or None; ``run`` are limits since :meth:`begin`."""
        limits, last = self.limits, self.history.last
        elapsed = limits.seconds is not None and last.seconds >= limits.seconds
        elapsed, interrupted = self.comm.allreduce(
            np.array([elapsed, self._interruption.came], dtype=int), op=MPI.SUM).astype(bool)
        if interrupted:
            return "interrupted"
        if self._stopped:
            return "stopped by the callback"
        for each, first in ((limits, self.history.iterations[0]), (run, self.history.iterations[self.first])):
            if each is None:
                continue
            if last is not first and last.gradient_norm <= each.relative_gradient * first.gradient_norm:
                return "relative gradient tolerance"
            if last.number - first.number >= each.iterations:
                return "iteration limit"
        if limits.work is not None and self.work.total >= limits.work:
            return "work budget"
        return "time budget" if elapsed else None

    # Ctrl-C, or SIGTERM, ends the run after the iteration; a second one at once.

    def __enter__(self) -> Course:
        self._contexts.append(Interruption())
        self._interruption = self._contexts[-1].__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._contexts.pop().__exit__(*raised)
