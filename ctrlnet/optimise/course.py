"""What all optimisers share: the record of their iterations, limits, the best controls, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from ctrlnet.controls import Controls
from ctrlnet.objective.work import Work
from ctrlnet.storage.history import History, Iteration

__all__ = ["Course", "Limits"]

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


class Course:
    """The record of one run.

    Parameters
    ----------
    limits, work
        When to end; the counter whose readings are recorded.
    comm
        All ranks: time and Ctrl-C are agreed upon, so that they end together.
    callback
        Called with each :class:`Iteration`, for progress bars.
    accuracies
        Returns accuracies by name for the controls of an iteration; its time is not counted.

    Attributes
    ----------
    history : History
    best : numpy.ndarray
        Coordinates of the iterate with the least objective since :meth:`begin`.
    first : int
        Position in the history of the first iteration since :meth:`begin`.
    """

    def __init__(
        self, limits: Limits, work: Work, comm: MPI.Comm, callback: Callable[[Iteration], None] | None = None,
        accuracies: Accuracies | None = None,
    ):
        self.limits, self.work, self.comm = limits, work, comm
        self.history = History()
        self.best: np.ndarray | None = None
        self.least = np.inf
        self._callback, self._accuracies = callback, accuracies
        self._began, self._paused = time.perf_counter(), 0.0
        self._interrupted = False
        self._depth = 0
        self._handler: Any = None  # what the signal did before
        self.first = 0

    def begin(self) -> None:
        """Start a run on a sample of its own; its objectives are not comparable with those before."""
        self.first, self.least = len(self.history.iterations), np.inf

    def record(
        self, x: np.ndarray, controls: Callable[[], Controls], objective: float, loss: float,
        gradient_norm: float, step: float, number: int, krylov: int = 0, images: int = 0,
    ) -> None:
        """Note an iterate; see :class:`Iteration`."""
        seconds, accuracies = time.perf_counter() - self._began - self._paused, {}
        if self._accuracies is not None:
            with self.uncounted():
                accuracies = dict(self._accuracies(controls()))
        if objective < self.least:
            self.least, self.best = objective, x.copy()
        iteration = Iteration(
            number, float(objective), float(loss), float(gradient_norm), float(step),
            self.work.total, seconds, krylov, dict(self.work.counts), accuracies, images)
        self.history.append(iteration)
        if self._callback is not None:
            self._callback(iteration)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context of what is measured for the record alone: neither its time nor its sweeps count."""
        began, counts = time.perf_counter(), dict(self.work.counts)
        yield
        self.work.counts.update(counts)
        self._paused += time.perf_counter() - began

    def reason_to_stop(self, run: Limits | None = None) -> str | None:
        """Return why it is time to end, the same on every rank, or None; ``run`` are limits since :meth:`begin`."""
        limits, last = self.limits, self.history.last
        elapsed = limits.seconds is not None and last.seconds >= limits.seconds
        elapsed, interrupted = self.comm.allreduce(
            np.array([elapsed, self._interrupted], dtype=int), op=MPI.SUM).astype(bool)
        if interrupted:
            return "interrupted"
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

    # Ctrl-C ends the run after the iteration; a second one at once.

    def __enter__(self) -> Course:
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._depth += 1
        return self

    def _interrupt(self, number, frame) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0 and self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None
