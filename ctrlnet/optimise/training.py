r"""Training of one level: quasi-Newton on the projected functional, on drawn, growing samples first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.objective.prediction import Prediction, Predicts
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.objective.work import Work
from ctrlnet.optimise.course import Course, Limits
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.stochastic import SampleSchedule, StochasticOptimiser
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.storage.history import History, Iteration
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
    callback: Callable[[Iteration], None] | None = None,
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
        Called with each iteration.
    """
    limits = Limits(iterations, relative_gradient, work_budget)
    return train(TaoOptimiser, problem, m, limits, rng, schedule, inner_tolerance, callback)[0]


def train(
    make: Callable, problem: TrainingProblem, m: ControlsLike, limits: Limits,
    rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    inner_tolerance: float | None = None, callback: Callable[[Iteration], None] | None = None,
) -> tuple[LevelResult, TaoOptimiser | StochasticOptimiser]:
    """Train one level by the quasi-Newton method that ``make(functional, limits=, course=)`` returns."""
    began, before = time.perf_counter(), problem.work.copy()
    functional = ProjectedFunctional(problem, m, inner_tolerance=inner_tolerance)
    if rng is None:
        course = Course(limits, functional.work, functional.comm, callback)
        run = make(functional, limits=limits, course=course)
    else:
        run = StochasticOptimiser(functional, rng, schedule, limits=limits, callback=callback, solver=make)
    found = run.solve()
    result = LevelResult(
        problem, run.functional.all_controls(found), run.history, time.perf_counter() - began,
        functional.inner_seconds, problem.work - before,
    )
    return result, run
