r"""Multiscale learning: train on the coarsest mesh, carry controls and classifier to the next finer one.

The controls multiply operators, so they move between meshes unchanged (rediscretisation) and between time
meshes by prolongation. The classifier is a field: it is prolonged, and then updated by its own convex solve,
which the first evaluation on the finer mesh does.

Source: Haber and Ruthotto, "Convolution neural nets meet PDE's", SIAM CSE 2017; Haber, Ruthotto, Holtham
and Jun, "Learning across scales", 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from pyadjoint import stop_annotating

from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.optimise.course import Limits
from ctrlnet.optimise.stochastic import SampleSchedule
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.optimise.training import LevelResult, journal_of, train
from ctrlnet.storage.checkpoints import Checkpoint
from ctrlnet.storage.history import Iteration
from ctrlnet.storage.interruption import Interruption

__all__ = ["train_multiscale"]


def train_multiscale(
    problems: Sequence[TrainingProblem], m: ControlsLike, *, iterations: int | Sequence[int] = 50,
    relative_gradient: float = 0.0, rng: np.random.Generator | None = None, schedule: SampleSchedule | None = None,
    callback: Callable[[int, Iteration], bool | None] | None = None, carry_secants: bool = False,
    checkpoint: Checkpoint | str | Path | None = None,
) -> list[LevelResult]:
    """Train the levels from coarse to fine, each from what the one before learned; return the result of each.

    After Ctrl-C or SIGTERM no further level is trained: one that came between two levels ends the next at its start.

    Parameters
    ----------
    problems
        One training problem a level, coarsest first, over one family of controls: each has the control
        space of the level before, or its :meth:`~ctrlnet.ControlSpace.finer` space.
    m
        Start on the coarsest level; without a classifier its first solve starts from zero.
    iterations
        Of every level, or one number a level.
    rng, schedule
        See :func:`train_level`; for the finest level. Coarser ones cost little and have the whole sample.
    callback
        Called with the level's number and each iteration; the level ends if it returns True.
    carry_secants
        Start a level with the secant pairs of the one before, if it has the same controls and weighs them alike. That
        saves the first line searches where the objectives of neighbouring levels are nearly the same, as with implicit
        diffusion; where they are not, the curvature of a coarse mesh misleads.
    checkpoint
        See :func:`train_level`; one for all levels.

    Raises
    ------
    ValueError
        If there is no problem, the counts differ, a control space does not follow from the one before, or the
        checkpoint is one of another training.
    """
    if not problems:
        raise ValueError("Multiscale training needs at least one level, received none.")
    limits: list[Any] = [iterations] * len(problems) if isinstance(iterations, int | Integral) else list(iterations)
    if len(limits) != len(problems):
        raise ValueError(f"{len(problems)} levels need as many iteration limits, received {len(limits)}.")
    for coarse, fine in zip(problems, problems[1:], strict=False):
        _check_depth(coarse, fine)
    journal = journal_of(checkpoint, problems, m, rng, schedule)
    results: list[LevelResult] = []
    run: Any = None  # of the level before: a TaoOptimiser, since only the finest level draws samples
    with Interruption():
        for number, problem in enumerate(problems):
            make: Callable = TaoOptimiser
            if results:
                last = results[-1]
                with stop_annotating():
                    m = _deepened(last, problem).extended(last.problem.readout.prolong(last.controls, problem.readout))
                if carry_secants and _same_coordinates(last.problem, problem):
                    make = run.over
            report = None if callback is None else (lambda i, level=number: callback(level, i))
            result, run = train(
                make, problem, m, Limits(limits[number], relative_gradient),
                rng if number == len(problems) - 1 else None, schedule, callback=report, journal=journal)
            results.append(result)
            if result.history.reason == "interrupted":
                break
    return results


def _check_depth(coarse: TrainingProblem, fine: TrainingProblem) -> None:
    old, new = coarse.network.control_space, fine.network.control_space
    same = old.s_space == new.s_space
    twice = new.cells == 2 * old.cells and (new.operators, new.features) == (old.operators, old.features)
    if not (same or twice):
        raise ValueError(
            f"A level has {new.cells} control cells, {new.operators} operators and {new.features} features; the one "
            f"before has {old.cells}, {old.operators} and {old.features}. Use the same ControlSpace, or its finer()."
        )


def _same_coordinates(coarse: TrainingProblem, fine: TrainingProblem) -> bool:
    """Whether a vector of an optimiser's stands for the same controls, in the same metric, on both levels."""
    old, new = (p.regularisation.operator_scales for p in (coarse, fine))
    return coarse.network.control_space.s_space == fine.network.control_space.s_space and np.array_equal(old, new)


def _deepened(last: LevelResult, problem: TrainingProblem) -> Controls:
    """Return what a level learned as controls in time, and opening, of the next one."""
    old, new = last.problem.network.control_space, problem.network.control_space
    in_time = old.control_set.controls(last.controls)
    opening = last.problem.network.opening.control_set.controls(last.controls)
    return (in_time if old.s_space == new.s_space else old.prolong(in_time, new)).extended(opening)
