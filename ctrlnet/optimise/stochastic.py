r"""Sample-average approximation: solve on a drawn sample, draw a larger one, go on from what was found.

Each outer iteration draws its images anew, improves the controls on their average by some steps of a deterministic
method, and keeps them if the loss of images that were not drawn has not grown; if it has, it goes back and draws
more. The last outer iterations run on the whole sample.

Sources: Haber, Chung and Herrmann, "An effective method for parameter estimation with PDE constraints with multiple
right-hand sides", 2012; Byrd, Chin, Nocedal and Wu, "Sample size selection in optimization methods for machine
learning", 2012.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctrlnet.controls import Controls, check_same_generators
from ctrlnet.errors import EvaluationError
from ctrlnet.objective.average import Average
from ctrlnet.optimise.course import Accuracies, Callback, Course, Limits
from ctrlnet.optimise.journal import Journal, numbering
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.storage.checkpoints import Checkpoint, checkpoint_of
from ctrlnet.storage.history import History

__all__ = ["Draw", "SampleSchedule", "StochasticOptimiser"]

_UNLIMITED = 10**9


@dataclass(frozen=True)
class SampleSchedule:
    """Sizes of the drawn samples and steps on each.

    Parameters
    ----------
    first
        Images of the first sample.
    growth
        Factor from one sample to the next, at least 1.
    iterations
        Steps on each drawn sample; the whole sample has those that the limits leave.
    held_out
        Images of the acceptance test as a share of the drawn ones, as far as there are others; 0: no test.

    Raises
    ------
    ValueError
        For a sample without images, a factor below 1, no steps, or a share outside [0, 1].
    """

    first: int = 300
    growth: float = 10.0
    iterations: int = 20
    held_out: float = 0.5

    def __post_init__(self) -> None:
        if self.first < 1 or not self.growth >= 1 or self.iterations < 1 or not 0 <= self.held_out <= 1:
            raise ValueError(
                "A sample schedule needs first >= 1 images, growth >= 1, iterations >= 1 and held_out in [0, 1]; "
                f"received {self!r}.")

    def next_size(self, size: int, total: int) -> int:
        """Return the size of the sample after one of ``size``; the whole one where little would be left out."""
        larger = max(int(round(size * self.growth)), size)
        return total if larger * 1.5 > total else larger


@dataclass(frozen=True)
class Draw:
    """One outer iteration: its images, whether its outcome was kept, and the held-out losses before and after."""

    images: int
    accepted: bool
    before: float
    after: float


class StochasticOptimiser:
    """Minimise a projected functional over drawn, growing samples.

    Parameters
    ----------
    functional
        The functional of the whole sample.
    rng
        Draws the samples; the same on any number of ranks.
    schedule
        Sizes and steps.
    solver
        Makes the method: a function (functional, limits, course) -> :class:`~ctrlnet.optimise.TaoOptimiser`. It goes
        on from sample to sample by its ``over``. Default: quasi-Newton, which keeps its secant pairs.
    limits
        When to end. The iterations and the gradient's tolerance are those on the whole sample; drawn ones have the
        schedule's.
    callback, accuracies
        See :class:`~ctrlnet.optimise.course.Course`.
    checkpoint
        See :class:`~ctrlnet.optimise.TaoOptimiser`.
    journal
        Of a training that this is a part of, in place of a checkpoint.

    Attributes
    ----------
    draws : list of Draw

    Raises
    ------
    ValueError
        If the first sample is larger than the whole one, or has fewer images than there are classes; if a class of
        the sample has no image.
    """

    def __init__(
        self, functional: ProjectedFunctional, rng: np.random.Generator, schedule: SampleSchedule | None = None, *,
        solver: Callable | None = None, limits: Limits | None = None,
        callback: Callback | None = None, accuracies: Accuracies | None = None,
        checkpoint: Checkpoint | str | Path | None = None, journal: Journal | None = None,
    ):
        sample = functional.problem.average.sample
        self.schedule = SampleSchedule(min(SampleSchedule.first, len(sample))) if schedule is None else schedule
        sample.targets.check_draw(self.schedule.first)
        self.functional, self.rng = functional, rng
        check_same_generators(functional.comm, [rng, *functional.problem.average.generators])
        self._make = TaoOptimiser if solver is None else solver
        self._optimiser: TaoOptimiser | None = None
        self._on_whole = Limits() if limits is None else limits
        self._journal = journal or self._own_journal(checkpoint_of(checkpoint))
        self.course = Course(
            replace(self._on_whole, iterations=_UNLIMITED, relative_gradient=0.0), functional.work, functional.comm,
            callback, accuracies, self._journal)
        self.draws: list[Draw] = []
        self._drawn: Average | None = None
        self._tested: Average | None = None

    def _own_journal(self, checkpoint: Checkpoint | None) -> Journal:
        functional = self.functional
        if checkpoint is None:
            return Journal(None, functional.comm)
        return Journal(
            checkpoint, functional.comm,
            {"controls": ", ".join(functional.names), "images": functional.images, "schedule": str(self.schedule),
             "start": np.concatenate([c.control.dat.data_ro.ravel() for c in functional.controls]),
             **numbering(functional.problem)},
            [self.rng, *functional.problem.average.generators])

    @property
    def history(self) -> History:
        return self.course.history

    def solve(self) -> Controls:
        """Train from the controls' values; return the best controls in time of the last sample.

        :attr:`functional` is then that of this sample, evaluated at them: it has the classifier.
        """
        whole = self.functional.problem.average
        total, size = len(whole.sample), self.schedule.first
        controls = Controls(self.functional.names, [c.control._ad_copy() for c in self.functional.controls])
        reason = None
        with self.course:
            while reason is None and size < total:
                accepted, found, trial = self._improve_on_a_draw(whole, size, controls)
                if accepted:
                    self.functional, controls = trial, found
                reason = self.course.reason_to_stop()
                size = self.schedule.next_size(size, total)
            if reason is None:
                self.functional = self.functional.over(whole, controls)
                controls = self._solve(self.functional, self._on_whole)
                reason = self.history.reason
        self.history.reason = reason
        return controls

    def _solve(self, functional: ProjectedFunctional, limits: Limits) -> Controls:
        if self._optimiser is None:
            self._optimiser = self._make(functional, limits=limits, course=self.course)
        else:
            self._optimiser.over(functional, limits)
        return self._optimiser.solve()

    def _improve_on_a_draw(self, whole: Average, size: int, controls: Controls):
        """Draw, improve and test; return whether to keep the outcome, the controls and their functional."""
        order = self._journal.answer(lambda: self.rng.permutation(len(whole.sample))).astype(int)
        others = order[size : size + int(size * self.schedule.held_out)]
        self._drawn = whole.over(np.sort(order[:size]), self._drawn)
        trial = self.functional.over(self._drawn, controls)
        found = self._solve(trial, Limits(self.schedule.iterations))
        before, after = np.nan, np.nan
        if self.functional.solution is not None and others.size:
            self._tested = whole.over(np.sort(others), self._tested)
            before, after = self._held_out_loss(self.functional, controls), self._held_out_loss(trial, found)
        accepted = not after > before
        self.draws.append(Draw(size, accepted, before, after))
        return accepted, found, trial

    def _held_out_loss(self, functional: ProjectedFunctional, controls: Controls) -> float:
        def computed() -> np.ndarray:
            solution = functional.solution
            try:
                at = self._tested.at(functional.problem.network.layers(controls))
                return np.array([at.value(solution.W, solution.beta)])
            except EvaluationError:
                return np.array([np.inf])

        return float(self._journal.answer(computed)[0])
