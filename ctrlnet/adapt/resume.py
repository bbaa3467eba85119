"""What a training with adaptation leaves on disk between two cycles, to go on from after its process has died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ctrlnet.adapt.cycles import Cycle
from ctrlnet.controls import Controls, ControlsLike
from ctrlnet.objective import TrainingProblem
from ctrlnet.operators.refinement import marked_places, marks_at, refined
from ctrlnet.optimise.journal import another_run, checksum, numbering
from ctrlnet.storage.checkpoints import Checkpoint, checkpoint_of

__all__ = ["Refinements"]


class Refinements:
    """How a problem was refined so far, with the controls that the next cycle starts from, kept in a checkpoint.

    Meshes are kept as the midpoints of the cells that were divided, which are divided again when a run goes on.

    Parameters
    ----------
    problem, m
        What the first cycle starts from.
    settings
        What tells this training from others besides.
    checkpoint
        Where it is kept; None: nowhere.

    Raises
    ------
    ValueError
        If the file is one of another training.
    """

    def __init__(
        self, problem: TrainingProblem, m: ControlsLike, settings: Mapping[str, Any],
        checkpoint: Checkpoint | str | Path | None,
    ):
        self._first, self._comm = problem, problem.average.comm
        self._checkpoint, self._found = checkpoint_of(checkpoint), None
        self._levels = [problem.network.operators.mesh]
        if self._checkpoint is None:
            return
        start = problem.control_set.arrays(problem.with_classifier(m))
        run = {**settings, **{f"start of {name}": values for name, values in start.items()}, **numbering(problem)}
        self._run = {name: checksum(value) for name, value in run.items()}
        self._found = self._checkpoint.read(self._comm)
        if self._found is not None and self._found["run"] != self._run:
            raise another_run(self._checkpoint, self._found["run"], self._run)

    def resumed(self, m: ControlsLike) -> tuple[TrainingProblem, Controls | ControlsLike, list[Cycle]]:
        """Return the problem and the controls of the next cycle, and the cycles before it."""
        found = self._found
        if found is None:
            return self._first, m, []
        network = self._first.network
        for number in range(len(found["marks"])):
            places = np.asarray(found["marks"][str(number)])
            mesh = self._levels[-1]
            self._levels.append(refined(mesh, marks_at(mesh, places) if places.size else None))
        if len(self._levels) > 1:
            network = network.on(network.space.reconstruct(mesh=self._levels[-1]))
        cells, steps = (_depth(found[name]) for name in ("cells", "steps"))
        space = network.control_space
        if not np.array_equal(cells, space.depth):
            space = space.with_cells(cells)
        problem = self._first.on(network.with_depth(space, steps))
        problem.work.counts.update(found["work"])
        controls = problem.control_set.functions({n: np.asarray(a) for n, a in found["controls"].items()})
        return problem, controls, [Cycle(**row) for row in found["cycles"]]

    def keep(self, problem: TrainingProblem, m: Controls, cycles: Sequence[Cycle]) -> None:
        """Write what the next cycle starts from; whole or not at all. Collective."""
        mesh = problem.network.operators.mesh
        if mesh is not self._levels[-1]:
            self._levels.append(mesh)
        if self._checkpoint is None:
            return
        marks = marked_places(self._levels[1:])
        assert marks is not None
        controls = problem.control_set.arrays(m)
        network = problem.network
        self._checkpoint.write({
            "run": self._run, "cycles": [asdict(cycle) for cycle in cycles],
            "marks": {str(k): np.zeros((0, 1)) if at is None else at for k, at in enumerate(marks)},
            "cells": np.atleast_1d(network.control_space.depth), "steps": np.atleast_1d(network.depth),
            "controls": controls, "work": dict(problem.work.counts)}, self._comm)


def _depth(kept: np.ndarray) -> int | np.ndarray:
    values = np.asarray(kept)
    return int(values[0]) if values.size == 1 else values
