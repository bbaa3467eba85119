"""Train, estimate the error of mesh and steps, refine what makes most of it, and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pyadjoint.tape import no_annotations

from ctrlnet.adapt.cycles import Cycle
from ctrlnet.adapt.estimate import ErrorEstimate, mesh_error, step_error
from ctrlnet.adapt.goals import Goal, MeanLoss
from ctrlnet.adapt.marking import largest_parts
from ctrlnet.adapt.resume import Refinements
from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.errors import PropagationError, finite
from ctrlnet.network.network import Network
from ctrlnet.network.stability import with_stable_steps
from ctrlnet.objective import TrainingProblem
from ctrlnet.objective.prediction import Prediction, Predicts
from ctrlnet.operators.refinement import refined
from ctrlnet.optimise.course import agreed_call
from ctrlnet.optimise.training import LevelResult, train_level
from ctrlnet.storage.checkpoints import Checkpoint
from ctrlnet.storage.trained import save

__all__ = ["AdaptedTraining", "finer_mesh", "finer_steps", "train_adaptively"]


@dataclass(frozen=True)
class AdaptedTraining(Predicts):
    """The last network that was trained, its controls and all cycles.

    ``reason`` is why there was no further cycle: ``"tolerance"``, ``"cycles"``, ``"nodes"``, ``"seconds"``,
    ``"interrupted"``, or ``"failed: ..."`` with what the propagation of the next network failed of.
    """

    problem: TrainingProblem
    controls: Controls
    cycles: tuple[Cycle, ...]
    reason: str
    last: LevelResult

    @cached_property
    def prediction(self) -> Prediction:
        """What the trained network says of inputs."""
        return self.problem.prediction(self.controls)

    def save(self, path: str | Path) -> Path:
        """Write the trained network, with the history of the last cycle, into one file; see :func:`ctrlnet.save`."""
        return save(path, self.problem, self.controls, self.last.history)


def finer_mesh(network: Network, estimate: ErrorEstimate, share: float = 0.5) -> Network:
    """Return the network on its mesh with the cells divided that make a share of the error; the next level.

    Quadrilaterals and hexahedra are divided all, as Firedrake divides no single ones.

    Raises
    ------
    ValueError
        If the share is not in (0, 1], or an indicator is not finite.
    """
    mesh = network.operators.mesh
    marked = largest_parts(estimate.cells.dat.data_ro, share, mesh.comm)
    simplices = mesh.ufl_cell().is_simplex
    return network.on(network.space.reconstruct(mesh=refined(mesh, marked if simplices else None)))


def finer_steps(
    network: Network, m: ControlsLike, estimate: ErrorEstimate, share: float = 0.5, *, cells: bool = False
) -> tuple[Network, Controls]:
    """Return the network with the steps halved that make a share of the error, and its controls.

    Parameters
    ----------
    cells
        Halve the control cells in which these steps lie too: the controls stay the functions of time that they are, and
        may then change within.

    Raises
    ------
    ValueError
        If the share is not in (0, 1], or an indicator is not finite.
    """
    marked = largest_parts(estimate.steps, share)
    middles = (network.times[:-1] + network.times[1:]) / 2
    times = np.sort(np.concatenate([network.times, middles[marked]]))
    space, given = network.control_space, network.control_set.controls(m)
    if not cells:
        return network.with_depth(steps=times), given
    ends = space.times
    held = np.unique(np.clip(np.searchsorted(ends, middles[marked], side="right") - 1, 0, space.cells - 1))
    divided = space.with_cells(np.sort(np.concatenate([ends, (ends[held] + ends[held + 1]) / 2])))
    return network.with_depth(divided, times), given.replace(**space.interpolate(given, divided).by_name())


@no_annotations
def train_adaptively(
    problem: TrainingProblem, m: ControlsLike, *, tolerance: float, iterations: int = 20, share: float = 0.5,
    most_cycles: int = 10, most_nodes: int | None = None, most_seconds: float | None = None,
    control_cells: bool = False, order: float = 2.0,
    goal: Callable[[TrainingProblem, Controls], Goal] = MeanLoss.of,
    callback: Callable[[Cycle], object] | None = None, checkpoint: Checkpoint | str | Path | None = None,
) -> AdaptedTraining:
    r"""Train on a mesh and steps that are refined until the estimated error is below a tolerance.

    In each cycle the controls are trained, the errors of mesh and steps estimated, and what exceeds half of the
    tolerance is refined; of the two, if only one does, that one. Controls belong to no mesh and go on as they are.
    Explicit steps are halved where they are too long for the mesh that the error is estimated with.

    Parameters
    ----------
    problem
        On the coarse mesh, with few steps.
    m
        Start; a classifier may be missing.
    tolerance
        Of the estimated error of the goal, :math:`|\eta_{mesh}| + |\eta_{steps}|`.
    iterations
        Of every cycle; see :func:`ctrlnet.train_level`.
    share
        Of the error, in (0, 1], that the marked cells or steps make.
    most_cycles, most_nodes, most_seconds
        Budgets. The last network within them is returned, with the reason.
    control_cells
        Halve control cells with the steps in them, see :func:`finer_steps`.
    order
        Of the mesh's error; see :func:`~ctrlnet.adapt.mesh_error`.
    goal
        What the error is one of, of a problem and its controls. Default: the objective.
    callback
        Called with each cycle; the training ends if it returns True on any rank.
    checkpoint
        What it goes on from when it is started again, with ``resume``: written between two cycles. A cycle that was cut
        short is trained anew.

    Returns
    -------
    AdaptedTraining
        With the network of the last cycle.

    Raises
    ------
    ValueError
        If the tolerance or a budget is not positive, the share not in (0, 1], the mesh cannot be refined, the problem's
        mean is one over several meshes, or the checkpoint is one of another training.
    PropagationError
        If the first network cannot be propagated on its own mesh or the refined one. Later such a failure ends the
        training with the last network that was estimated.
    """
    _check(problem, tolerance, share, most_cycles, most_nodes, most_seconds)
    settings = {"tolerance": tolerance, "iterations": iterations, "share": share, "order": order,
                "control_cells": control_cells}
    kept = Refinements(problem, m, settings, checkpoint)
    problem, at, cycles = kept.resumed(m)
    began = time.perf_counter() - (cycles[-1].seconds if cycles else 0.0)
    last: tuple[TrainingProblem, LevelResult] | None = None
    while True:
        try:
            result, work = train_level(problem, at, iterations=iterations), problem.work
            if result.history.reason == "interrupted":
                reason = "interrupted"
                break
            problem, finer = _stable(problem, result.controls)
            of = goal(problem, result.controls)
            in_mesh, in_steps = mesh_error(of, order=order, finer=finer, work=work), step_error(of, work=work)
        except PropagationError as error:
            if last is None:
                raise
            (problem, result), reason = last, f"failed: {error}"
            break
        last = problem, result
        cycles.append(Cycle(
            len(cycles) + 1, problem.network.operators.nodes, problem.network.steps,
            result.history.last.number, result.history.last.objective, in_mesh.whole, in_steps.whole,
            time.perf_counter() - began, work.total))
        errors = abs(in_mesh.whole), abs(in_steps.whole)
        if callback is not None and agreed_call(callback, cycles[-1], problem.average.comm):
            reason = "interrupted"
            break
        reason = _reason(problem, errors, tolerance, cycles[-1], most_cycles, most_seconds)
        if reason:
            break
        network, controls = problem.network, result.controls
        if errors[1] > tolerance / 2:
            network, in_time = finer_steps(network, controls, in_steps, share, cells=control_cells)
            controls = controls.replace(**in_time.by_name())
        if errors[0] > tolerance / 2:
            network = finer_mesh(network, in_mesh, share)
        if most_nodes is not None and network.operators.nodes > most_nodes:
            reason = "nodes"
            break
        problem, at = problem.on(network), controls
        kept.keep(problem, controls, cycles)
    return AdaptedTraining(problem, result.controls, tuple(cycles), reason, result)


def _stable(problem: TrainingProblem, m: Controls) -> tuple[TrainingProblem, Network]:
    """Return the problem with steps that are stable on the mesh with every cell divided, and the network there."""
    network = problem.network
    finer = network.on(network.space.reconstruct(mesh=refined(network.operators.mesh)))
    stable = with_stable_steps(finer, m)
    return (problem if stable is finer else problem.on(network.with_depth(steps=stable.times))), stable


def _reason(
    problem: TrainingProblem, errors: tuple[float, float], tolerance: float, cycle: Cycle, most_cycles: int,
    most_seconds: float | None,
) -> str:
    """Return why there is no further cycle, or nothing."""
    if sum(errors) <= tolerance:
        return "tolerance"
    if cycle.number >= most_cycles:
        return "cycles"
    late = most_seconds is not None and problem.average.comm.bcast(cycle.seconds >= most_seconds)
    return "seconds" if late else ""


def _check(
    problem: TrainingProblem, tolerance: float, share: float, most_cycles: int, most_nodes: int | None,
    most_seconds: float | None,
) -> None:
    if not (finite(tolerance) and tolerance > 0):
        raise ValueError(f"The tolerance of an error must be positive and finite, received {tolerance!r}.")
    if not (finite(share) and 0 < share <= 1):
        raise ValueError(f"The marked share of an error lies above 0 and up to 1, received {share!r}.")
    for name, value in (("most_cycles", most_cycles), ("most_nodes", most_nodes), ("most_seconds", most_seconds)):
        if value is not None and not (finite(value) and value > 0):
            raise ValueError(f"The budget {name} must be positive, received {value!r}.")
    if problem.average.count != len(problem.average.sample):
        raise ValueError(
            "A mean over several meshes has no one mesh to refine. Give a TrainingProblem of one mesh.")
    if problem.network.operators.mesh.extruded:
        raise ValueError("Extruded meshes cannot be refined. Take a mesh of triangles or tetrahedra.")
