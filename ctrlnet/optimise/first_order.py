"""Stochastic first-order training with mini-batches: the baselines that Newton-type methods are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, Coordinates, check_same_generators
from ctrlnet.errors import EvaluationError, finite
from ctrlnet.objective.average import Average
from ctrlnet.optimise.course import Accuracies, Callback, Course, Limits
from ctrlnet.optimise.joint import JointFunctional
from ctrlnet.optimise.journal import another_run, checksum, generator_states, numbering, set_generators
from ctrlnet.optimise.update_rules import Adam, Step, UpdateRule
from ctrlnet.storage.checkpoints import Checkpoint, checkpoint_of
from ctrlnet.storage.columns import columns_of, rows_of
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
    checkpoint
        A :class:`~ctrlnet.storage.Checkpoint`, or its path: what the run goes on from when it is started again. It is
        written between batches too.

    Raises
    ------
    ValueError
        If the batch is larger than the sample, or a number is not positive.
    """

    def __init__(
        self, functional: JointFunctional, rng: np.random.Generator, rule: UpdateRule | None = None, *,
        rate: float = 1e-2, batch: int = 128, schedule: Callable[[float], float] = cosine_rate,
        limits: Limits | None = None, coordinates: Coordinates | None = None, evaluate_every: int = 1,
        callback: Callback | None = None, accuracies: Accuracies | None = None,
        recorded: Average | None = None, checkpoint: Checkpoint | str | Path | None = None,
    ):
        average = functional.problem.average
        if not 1 <= batch <= len(average.sample):
            raise ValueError(
                f"A batch holds 1 to {len(average.sample)} images, as many as the sample; received batch={batch!r}.")
        if not (finite(rate, evaluate_every) and rate > 0 and evaluate_every >= 1):
            raise ValueError(
                f"The learning rate and evaluate_every must be positive and finite, received {rate!r} and "
                f"{evaluate_every!r}.")
        self.functional, self.rng = functional, rng
        check_same_generators(functional.comm, [rng, *average.generators])
        self.rule = Adam() if rule is None else rule
        self.rate, self.batch, self.schedule, self.evaluate_every = rate, batch, schedule, evaluate_every
        if coordinates is None:
            coordinates = functional.problem.coordinates(functional.names, euclidean=True)
        self.coordinates = coordinates
        self.limits = Limits() if limits is None else limits
        self.course = Course(self.limits, functional.work, functional.comm, callback, accuracies)
        self._average: Average | None = None
        self._recorded = functional if recorded is None else functional.over(recorded)
        self._checkpoint, self._kept = checkpoint_of(checkpoint), 0
        self._numbering = {} if checkpoint is None else numbering(functional.problem)

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
        course = self.course
        at = self._resumed() or _Place.first(
            self.coordinates.array([c.control for c in Enlist(self.functional.controls)]), self.rule, self.rate)
        total = max(1, self.limits.iterations)
        with course:
            while True:
                if at.order is None:
                    if at.recorded < at.passes or not course.history.iterations:
                        self._record_if_due(at, total)
                    course.history.reason = course.reason_to_stop()
                    self._keep(at, now=course.history.reason is not None)
                    if course.history.reason is not None:
                        break
                    at.begin(self.rng.permutation(len(self.functional.problem.average.sample)))
                try:
                    whole = self._rest_of_a_pass(at, total)
                except EvaluationError:
                    at.go_back(self.rule)
                    whole = True
                if not whole:  # what was learned since the pass before counts too
                    self._record(at.x, at.rate * self.schedule(at.passes / total), at.passes)
                    course.history.reason = "interrupted"
                    break
                at.end()
        return self.coordinates.functions(course.best)

    def _record_if_due(self, at: _Place, total: int) -> None:
        at.recorded = at.passes
        if at.passes % self.evaluate_every == 0 or at.passes >= self.limits.iterations:
            self._record(at.x, at.rate * self.schedule(at.passes / total), at.passes)

    def _rest_of_a_pass(self, at: _Place, total: int) -> bool:
        """Go over what is left of the sample in batches; an incomplete last batch is left out.

        Returns False if the pass was interrupted.
        """
        functional, average = self.functional, self.functional.problem.average
        assert at.order is not None
        count = len(at.order) // self.batch
        while at.batch < count:
            chosen = at.order[at.batch * self.batch : (at.batch + 1) * self.batch]
            self._average = average.over(chosen, self._average)
            batch = functional.over(self._average)
            batch(self.coordinates.functions(at.x))
            g = self.coordinates.dual_array(Enlist(batch.derivative()))
            at.x += at.step(g, at.rate * self.schedule((at.passes + at.batch / count) / total))
            at.batch += 1
            stop = self.course.interrupted()
            self._keep(at, now=stop)
            if stop:
                return False
        return True

    # What a run goes on from.

    def _run(self) -> dict[str, Any]:
        """Return what tells this run from others."""
        x = self.coordinates.array([c.control for c in Enlist(self.functional.controls)])
        return {
            "controls": ", ".join(self.functional.names), "images": self.functional.images, "batch": self.batch,
            "rule": str(self.rule), "rate": self.rate, "start": checksum(x),
            **self._numbering}

    @property
    def _generators(self) -> list[np.random.Generator]:
        return [self.rng, *self.functional.problem.average.generators]

    def _resumed(self) -> _Place | None:
        """Return where the run of a checkpoint was, with record, counter, clock and generators as they were there."""
        found = None if self._checkpoint is None else self._checkpoint.read(self.functional.comm)
        if found is None:
            return None
        if found["run"] != (mine := self._run()):
            raise another_run(self._checkpoint, found["run"], mine)
        set_generators(self._generators, found["generators"])
        self.course.go_on(rows_of(Iteration, found["rows"]), found["best"], found["counts"], found["seconds"])
        at, step = found["place"], self.rule.start(found["place"]["x"].size)
        for name, values in step.memory.items():
            values[:] = found["memory"][name]
        return _Place(
            at["x"], step, at["rate"], at["passes"], at["recorded"], at.get("order"), at["batch"], at.get("start"))

    def _keep(self, at: _Place, now: bool = False) -> None:
        """Write the checkpoint if it is time, or ``now``. Collective."""
        checkpoint, course = self._checkpoint, self.course
        if checkpoint is None:
            return
        may = at.order is None or checkpoint.iterations is None  # within a pass by the clock alone
        if not now and not (may and checkpoint.due(at.passes - self._kept, self.functional.comm)):
            return
        pass_of = {} if at.order is None else {"order": at.order, "start": at.start}
        checkpoint.write({
            "run": self._run(), "rows": columns_of(course.history.iterations), "best": course.best,
            "counts": dict(course.work.counts), "seconds": course.seconds, "memory": at.step.memory,
            "generators": generator_states(self._generators),
            "place": {"x": at.x, "rate": at.rate, "passes": at.passes, "recorded": at.recorded, "batch": at.batch,
                      **pass_of}}, self.functional.comm)
        self._kept = at.passes

    def _record(self, x: np.ndarray, rate: float, passes: int) -> None:
        functional = self._recorded
        with self.course.uncounted():
            controls = self.coordinates.functions(x)
            value = float(functional(controls))
            norm = float(np.linalg.norm(self.coordinates.dual_array(Enlist(functional.derivative()))))
        self.course.record(
            x, lambda: functional.all_controls(controls), value, functional.loss, norm, rate, number=passes,
            images=functional.images)


@dataclass
class _Place:
    """Where a run is: between two passes, where ``order`` is None, or within one.

    Parameters
    ----------
    x, step, rate
        Coordinates, the running rule, the learning rate before its schedule.
    passes, recorded
        Passes that are over, and how many were when the objective was recorded.
    order, batch, start
        Of the pass: its permutation, the next batch, and x at its start.
    """

    x: np.ndarray
    step: Step
    rate: float
    passes: int = 0
    recorded: int = -1
    order: np.ndarray | None = None
    batch: int = 0
    start: np.ndarray | None = None

    @classmethod
    def first(cls, x: np.ndarray, rule: UpdateRule, rate: float) -> _Place:
        return cls(x, rule.start(x.size), rate)

    def begin(self, order: np.ndarray) -> None:
        self.order, self.batch, self.start, self.x = order, 0, self.x, self.x.copy()

    def end(self) -> None:
        self.order, self.batch, self.start, self.passes = None, 0, None, self.passes + 1

    def go_back(self, rule: UpdateRule) -> None:
        """Undo the pass, with half the rate and no memory."""
        assert self.start is not None
        self.x, self.rate, self.step = self.start, self.rate / 2, rule.start(self.start.size)
