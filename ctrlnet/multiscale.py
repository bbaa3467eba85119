r"""Multiscale learning: train on the coarsest mesh, carry controls and classifier to the next finer one.

The controls multiply operators, so they move between meshes unchanged (rediscretisation) and between time
meshes by prolongation. The classifier is a field: it is prolonged, and then updated by its own convex solve,
which the first evaluation on the finer mesh does.

Source: Haber and Ruthotto, "Convolution neural nets meet PDE's", SIAM CSE 2017; Haber, Ruthotto, Holtham
and Jun, "Learning across scales", 2018.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from firedrake import Function

from ctrlnet.optimise.course import Course, Limits
from ctrlnet.optimise.history import History, Iteration
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.stochastic import SampleSchedule, StochasticOptimiser
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.problem import TrainingProblem
from ctrlnet.work import Work

__all__ = ["LevelResult", "train_level", "train_multiscale"]


@dataclass(frozen=True)
class LevelResult:
    """Controls and classifier after the training of one level, with its course.

    ``work`` is what this level cost; ``inner_seconds`` is the share of ``seconds`` that went into classifier
    solves.
    """

    problem: TrainingProblem
    s: Function
    b: Function
    W: Function
    beta: Function
    history: History
    seconds: float
    inner_seconds: float
    work: Work

    @property
    def controls(self) -> tuple[Function, Function, Function, Function]:
        return self.s, self.b, self.W, self.beta


def train_level(
    problem: TrainingProblem, s: Function, b: Function, W: Function | None = None, beta: Function | None = None,
    *, iterations: int = 50, relative_gradient: float = 0.0, work_budget: float | None = None,
    rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    inner_tolerance: float | None = None,
    callback: Callable[[Iteration], None] | None = None,
) -> LevelResult:
    """Train s, b by quasi-Newton on the projected functional of one problem, from the given start.

    With a generator the steps on the whole sample come after some on drawn, growing samples, which cost little and
    do most of the work: of all methods of ``demos/optimisers`` the fastest.

    Parameters
    ----------
    problem
        Mesh, sample and regularisation.
    s, b, W, beta
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
    return _train(TaoOptimiser, problem, (s, b, W, beta), limits, rng, schedule, inner_tolerance, callback)[0]


def _train(
    make: Callable, problem: TrainingProblem, start, limits: Limits, rng=None, schedule=None, inner_tolerance=None,
    callback=None,
) -> tuple[LevelResult, TaoOptimiser | StochasticOptimiser]:
    """Train one level by the quasi-Newton method that ``make(functional, limits=, course=)`` returns."""
    began, before = time.perf_counter(), problem.work.copy()
    functional = ProjectedFunctional(problem, *start, inner_tolerance=inner_tolerance)
    if rng is None:
        course = Course(limits, problem.work, problem.average.comm, callback)
        run = make(functional, limits=limits, course=course)
    else:
        run = StochasticOptimiser(functional, rng, schedule, limits=limits, callback=callback, solver=make)
    s, b = run.solve()
    result = LevelResult(
        problem, s, b, *run.functional.classifier(), run.history, time.perf_counter() - began,
        functional.inner_seconds, problem.work - before,
    )
    return result, run


def train_multiscale(
    problems: Sequence[TrainingProblem], s: Function, b: Function, *, iterations: int | Sequence[int] = 50,
    relative_gradient: float = 0.0, rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    callback: Callable[[int, Iteration], None] | None = None, carry_secants: bool = False,
) -> list[LevelResult]:
    """Train the levels from coarse to fine, each from what the one before learned.

    Parameters
    ----------
    problems
        One training problem a level, coarsest first, over one family of controls: each has the control
        space of the level before, or its :meth:`~ctrlnet.ControlSpace.finer` space.
    s, b
        Start on the coarsest level.
    iterations
        Of every level, or one number a level.
    rng, schedule
        See :func:`train_level`; for the finest level. Coarser ones cost little and have the whole sample.
    callback
        Called with the level's number and each iteration.
    carry_secants
        Start a level with the secant pairs of the one before, if it has the same controls and weighs them alike. That
        saves the first line searches where the objectives of neighbouring levels are nearly the same, as with implicit
        diffusion; where they are not, the curvature of a coarse mesh misleads.

    Raises
    ------
    ValueError
        If there is no problem, the counts differ, or a control space does not follow from the one before.
    """
    if not problems:
        raise ValueError("Multiscale training needs at least one level, received none.")
    limits = [iterations] * len(problems) if isinstance(iterations, int) else list(iterations)
    if len(limits) != len(problems):
        raise ValueError(f"{len(problems)} levels need as many iteration limits, received {len(limits)}.")
    for coarse, fine in zip(problems, problems[1:], strict=False):
        _check_depth(coarse, fine)
    results: list[LevelResult] = []
    classifier: tuple[Function | None, Function | None] = (None, None)
    run: TaoOptimiser | StochasticOptimiser | None = None
    for number, problem in enumerate(problems):
        make: Callable = TaoOptimiser
        if results:
            last = results[-1]
            s, b = _deepen(last, problem)
            classifier = last.problem.readout.prolong(last.W, last.beta, problem.readout)
            if carry_secants and _same_coordinates(last.problem, problem):
                make = run.over
        report = None if callback is None else (lambda i, level=number: callback(level, i))
        result, run = _train(
            make, problem, (s, b, *classifier), Limits(limits[number], relative_gradient),
            rng if number == len(problems) - 1 else None, schedule, callback=report)
        results.append(result)
    return results


def _check_depth(coarse: TrainingProblem, fine: TrainingProblem) -> None:
    old, new = coarse.network.controls, fine.network.controls
    same = old.s_space == new.s_space
    twice = new.cells == 2 * old.cells and (new.operators, new.features) == (old.operators, old.features)
    if not (same or twice):
        raise ValueError(
            f"A level has {new.cells} control cells, {new.operators} operators and {new.features} features; the one "
            f"before has {old.cells}, {old.operators} and {old.features}. Use the same ControlSpace, or its finer()."
        )


def _same_coordinates(coarse: TrainingProblem, fine: TrainingProblem) -> bool:
    """Whether a vector of an optimiser's stands for the same controls, in the same metric, on both levels."""
    weights = (p.regularisation.operator_weights for p in (coarse, fine))
    return coarse.network.controls.s_space == fine.network.controls.s_space and np.array_equal(*weights)


def _deepen(last: LevelResult, problem: TrainingProblem) -> tuple[Function, Function]:
    old, new = last.problem.network.controls, problem.network.controls
    if old.s_space == new.s_space:
        return last.s, last.b
    return old.prolong(last.s, last.b, new)
