r"""Training of one level: quasi-Newton on the projected functional, on drawn, growing samples first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.network.stability import warn_of_long_steps
from ctrlnet.objective.prediction import Prediction, Predicts
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.objective.work import Work
from ctrlnet.optimise.course import Callback, Course, Limits
from ctrlnet.optimise.journal import Journal, numbering
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.stochastic import SampleSchedule, StochasticOptimiser
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.storage.checkpoints import Checkpoint, checkpoint_of
from ctrlnet.storage.history import History
from ctrlnet.storage.trained import save

__all__ = ["LevelResult", "train", "train_level"]


@dataclass(frozen=True)
class LevelResult(Predicts):
    """All controls after the training of one level, with its course.

    ``work`` is what this level cost; ``inner_seconds`` is the share of ``seconds`` that went into classifier
    solves.
    """

    problem: TrainingProblem
    controls: Controls
    history: History
    seconds: float
    inner_seconds: float
    work: Work

    @cached_property
    def prediction(self) -> Prediction:
        """What the trained network says of inputs."""
        return self.problem.prediction(self.controls)

    def save(self, path: str | Path) -> Path:
        """Write the trained network with its history into one file; see :func:`ctrlnet.save`."""
        return save(path, self.problem, self.controls, self.history)


def train_level(
    problem: TrainingProblem, m: ControlsLike, *, iterations: int = 50, relative_gradient: float = 0.0,
    work_budget: float | None = None,
    rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    inner_tolerance: float | None = None,
    callback: Callback | None = None, checkpoint: Checkpoint | str | Path | None = None,
) -> LevelResult:
    """Train the controls by quasi-Newton on the projected functional of one problem, from the given start.

    With a generator the steps on the whole sample come after some on drawn, growing samples, which cost little and
    do most of the work: of all methods of ``demos/optimisers`` the fastest.

    Parameters
    ----------
    problem
        Mesh, sample and regularisation.
    m
        Start; without a classifier the first inner solve starts from zero.
    iterations, relative_gradient, work_budget
        See :class:`~ctrlnet.optimise.Limits`; those on the whole sample, and a reading of ``problem.work``.
    rng
        Draws the samples. Default: the whole sample from the start.
    schedule
        Sizes of the drawn samples; see :class:`~ctrlnet.optimise.SampleSchedule`.
    inner_tolerance
        Of the classifier's solves; see :class:`~ctrlnet.optimise.ProjectedFunctional`.
    callback
        Called with each iteration, which has the controls; the training ends if it returns True.
    checkpoint
        What it goes on from when it is started again: a :class:`~ctrlnet.storage.Checkpoint`, or the path of one with
        its defaults.

    Raises
    ------
    ValueError
        If a control is in another space, or the checkpoint is one of another training.
    """
    limits = Limits(iterations, relative_gradient, work_budget)
    journal = journal_of(checkpoint, [problem], m, rng, schedule)
    return train(TaoOptimiser, problem, m, limits, rng, schedule, inner_tolerance, callback, journal)[0]


def journal_of(
    checkpoint: Checkpoint | str | Path | None, problems: Sequence[TrainingProblem], m: ControlsLike,
    rng: np.random.Generator | None, schedule: SampleSchedule | None,
) -> Journal:
    """Return the journal of a training of some levels from a start on the first."""
    first = problems[0]
    if checkpoint is None:
        return Journal(None, first.average.comm)
    start = first.network.control_set.arrays(first.with_classifier(m))
    run = {
        "levels": len(problems), "images": [len(problem.average.sample) for problem in problems],
        "nodes": [problem.network.space.dim() for problem in problems],
        "steps": [problem.network.depth for problem in problems], "schedule": str(schedule),
        **{f"start of {name}": values for name, values in start.items()}, **numbering(problems[-1])}
    rngs = [] if rng is None else [rng]
    generators = [g for problem in problems for g in problem.average.generators]
    return Journal(checkpoint_of(checkpoint), first.average.comm, run, [*rngs, *generators])


def train(
    make: Callable, problem: TrainingProblem, m: ControlsLike, limits: Limits,
    rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    inner_tolerance: float | None = None, callback: Callback | None = None, journal: Journal | None = None,
) -> tuple[LevelResult, TaoOptimiser | StochasticOptimiser]:
    """Train one level by the quasi-Newton method that ``make(functional, limits=, course=)`` returns."""
    began, before = time.perf_counter(), problem.work.copy()
    warn_of_long_steps(problem.network, problem.with_classifier(m))
    functional = ProjectedFunctional(problem, m, inner_tolerance=inner_tolerance)
    if rng is None:
        course = Course(limits, functional.work, functional.comm, callback, journal=journal)
        run = make(functional, limits=limits, course=course)
    else:
        run = StochasticOptimiser(
            functional, rng, schedule, limits=limits, callback=callback, solver=make,
            journal=journal)
    found = run.solve()
    result = LevelResult(
        problem, run.functional.all_controls(found), run.history,
        max(time.perf_counter() - began, run.history.last.seconds), functional.inner_seconds, problem.work - before,
    )
    return result, run
