"""Stochastic first-order training with mini-batches: the baselines that Newton-type methods are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, Coordinates
from ctrlnet.errors import EvaluationError
from ctrlnet.objective.average import Average
from ctrlnet.optimise.course import Accuracies, Course, Limits
from ctrlnet.optimise.joint import JointFunctional
from ctrlnet.optimise.update_rules import Adam, Step, UpdateRule
from ctrlnet.storage.history import History, Iteration

__all__ = ["FirstOrder", "constant_rate", "cosine_rate", "warm_cosine_rate"]


def constant_rate(progress: float) -> float:
    """Return 1 whatever the progress."""
    return 1.0


def cosine_rate(progress: float) -> float:
    r"""Return :math:`\frac12(1 + \cos \pi p)`: from 1 to 0 as the progress goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def warm_cosine_rate(progress: float) -> float:
    """Return a tenth of the way linearly up from 0 to 1, the rest as :func:`cosine_rate` down to 0."""
    return progress / 0.1 if progress < 0.1 else cosine_rate((progress - 0.1) / 0.9)


class FirstOrder:
    """Minimise a joint functional by mini-batches, an iteration being a pass over the sample.

    A batch's objective is its mean loss plus the whole regularisation. Where it is not finite, the batch is left
    out, the controls go back to the start of the pass, and the learning rate is halved.

    Parameters
    ----------
    functional
        Its problem's sample is what the batches are drawn from, without replacement within a pass.
    rng
        Draws the batches; the same on any number of ranks.
    rule
        An update rule. Default: :class:`~ctrlnet.optimise.update_rules.Adam`.
    rate
        Learning rate, in the coordinates.
    batch
        Images of a batch.
    schedule
        Factor of the learning rate as a function of the progress, 0 to 1, towards the limit of iterations.
    limits
        When to end.
    coordinates
        What the rule sees. Default: the degrees of freedom themselves, as is usual.
    evaluate_every
        Passes after which the objective of the whole sample is evaluated and recorded. The method does not need it,
        so neither its work nor its time is counted.
    callback, accuracies
        See :class:`~ctrlnet.optimise.course.Course`.
    recorded
        The average whose objective is recorded, where that of the whole sample would take too long.

    Raises
    ------
    ValueError
        If the batch is larger than the sample, or a number is not positive.
    """

    def __init__(
        self, functional: JointFunctional, rng: np.random.Generator, rule: UpdateRule | None = None, *,
        rate: float = 1e-2, batch: int = 128, schedule: Callable[[float], float] = cosine_rate,
        limits: Limits | None = None, coordinates: Coordinates | None = None, evaluate_every: int = 1,
        callback: Callable[[Iteration], None] | None = None, accuracies: Accuracies | None = None,
        recorded: Average | None = None,
    ):
        average = functional.problem.average
        if not 1 <= batch <= len(average.sample):
            raise ValueError(
                f"A batch holds 1 to {len(average.sample)} images, as many as the sample; received batch={batch!r}.")
        if not rate > 0 or evaluate_every < 1:
            raise ValueError(
                f"The learning rate and evaluate_every must be positive, received {rate!r} and {evaluate_every!r}.")
        self.functional, self.rng = functional, rng
        self.rule = Adam() if rule is None else rule
        self.rate, self.batch, self.schedule, self.evaluate_every = rate, batch, schedule, evaluate_every
        if coordinates is None:
            coordinates = functional.problem.coordinates(functional.names, euclidean=True)
        self.coordinates = coordinates
        self.limits = Limits() if limits is None else limits
        self.course = Course(self.limits, functional.work, functional.comm, callback, accuracies)
        self._average: Average | None = None
        self._recorded = functional if recorded is None else functional.over(recorded)

    @property
    def history(self) -> History:
        return self.course.history

    def solve(self) -> Controls:
        """Train from the controls' values and return the best of the recorded controls.

        Raises
        ------
        EvaluationError
            If the starting point itself cannot be evaluated.
        """
        functional, course = self.functional, self.course
        x = self.coordinates.array([c.control for c in Enlist(functional.controls)])
        step, rate, passes = self.rule.start(x.size), self.rate, 0
        total = max(1, self.limits.iterations)
        with course:
            while True:
                if passes % self.evaluate_every == 0 or passes >= self.limits.iterations:
                    self._record(x, rate * self.schedule(passes / total), passes)
                    course.history.reason = course.reason_to_stop()
                    if course.history.reason is not None:
                        break
                try:
                    x = self._one_pass(x, step, rate, passes, total)
                except EvaluationError:
                    rate /= 2
                    step = self.rule.start(x.size)
                passes += 1
        return self.coordinates.functions(course.best)

    def _one_pass(self, x: np.ndarray, step: Step, rate: float, passes: int, total: int) -> np.ndarray:
        """Return the controls after a pass over the sample in batches; an incomplete last batch is left out."""
        functional, x = self.functional, x.copy()
        average = functional.problem.average
        order = self.rng.permutation(len(average.sample))
        count = len(order) // self.batch
        for k in range(count):
            chosen = order[k * self.batch : (k + 1) * self.batch]
            self._average = average.over(chosen, self._average)
            batch = functional.over(self._average)
            batch(self.coordinates.functions(x))
            g = self.coordinates.dual_array(Enlist(batch.derivative()))
            x += step(g, rate * self.schedule((passes + k / count) / total))
        return x

    def _record(self, x: np.ndarray, rate: float, passes: int) -> None:
        functional = self._recorded
        with self.course.uncounted():
            controls = self.coordinates.functions(x)
            value = float(functional(controls))
            norm = float(np.linalg.norm(self.coordinates.dual_array(Enlist(functional.derivative()))))
        self.course.record(
            x, lambda: functional.all_controls(controls), value, functional.loss, norm, rate, number=passes,
            images=functional.images)
