"""A program run on the fields of a chunk: forwards, backwards, along tangents and to second order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctrlnet.formulas.language import Pointwise
from ctrlnet.formulas.program import Program
from ctrlnet.kernels.code.arrays import LinearSolve
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.traced.on_mesh import OnMesh
from ctrlnet.kernels.traced.primitives import Primitives

__all__ = ["Bars", "Run"]


class Run:
    """A program with its fields for one chunk size on one mesh.

    ``values`` are those of the last :meth:`evaluate`, ``changes`` those of the last :meth:`tangent`.
    """

    def __init__(self, program: Program, mesh: OnMesh, images: int, solver: Callable | None = None):
        self.program, self.mesh, self.images = program, mesh, images
        self.primitives = mesh.primitives
        count = len(program.operations)
        self._fields: dict[tuple, np.ndarray] = {}
        self.values: list = [None] * count
        self.changes: list = [None] * count
        self.inner: dict[int, Run] = {
            i: Run(inner, mesh, images) for i, o in enumerate(program.operations)
            if (inner := o.stage_formula()) is not None
        }
        self.solvers = {i: solver(run) for i, run in self.inner.items()} if solver else {}

    def at(self, controls: LayerControls, h: float) -> Run:
        """Set the step's controls, a row a stage, and its size."""
        self.controls, self.h = controls, h
        for run in self.inner.values():
            run.at(controls, h)
        return self

    def buffer(self, what: str, index: int, part: int = 0) -> np.ndarray:
        key = (what, index, part)
        if key not in self._fields:
            self._fields[key] = self.primitives.field(self.mesh.nodes, self.images)
        return self._fields[key]

    def pointwise(self, activation: Pointwise) -> Primitives:
        """Return the kernels with this activation."""
        return self.mesh.pointwise[activation]

    def resolvent(self, c: float, r: float) -> LinearSolve:
        r"""Return the maps :math:`G^{-1}` and :math:`G^{-T}`, :math:`G = I - c e^r\Delta_h`."""
        return self.mesh.resolvents(c, r)

    def update(self, field: np.ndarray, rows: str) -> None:
        """Fill the ghost rows that a set of operators reads; sets may have different ones."""
        table = self.mesh.rows[rows].table
        table.halo.update(field[: table.nodes])

    def evaluate(self, inputs: list[np.ndarray], following: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Run forwards; ``following`` are the outputs, if known, for a first guess of implicit stages."""
        self.inputs, self.following = inputs, following
        for i, operation in enumerate(self.program.operations):
            self.values[i] = operation.value(self, i)
        return [self.values[i] for i in self.program.outputs]

    def tangent(
        self, inputs: list, direction: LayerControls | None = None, what: str = "change", changes: list | None = None
    ) -> list:
        """Return the change of the outputs (None: zero) along a change of inputs and controls."""
        self.input_changes, self.direction = inputs, direction
        changes = self.changes if changes is None else changes
        for i, operation in enumerate(self.program.operations):
            changes[i] = operation.tangent(self, i, changes, what)
        return [changes[i] for i in self.program.outputs]

    def tangent_terms(self, inputs: list, what: str, changes: list) -> list[list[tuple[float, np.ndarray]]]:
        """Return the outputs' changes along one of the inputs as terms, factors and fields: last sums are not made."""
        self.input_changes, self.direction = inputs, None
        operations, last = self.program.operations, self.program.last_sums
        for i, operation in enumerate(operations):
            if i not in last:
                changes[i] = operation.tangent(self, i, changes, what)
        return [
            operations[i].held(self, changes) if i in last else ([] if changes[i] is None else [(1.0, changes[i])])
            for i in self.program.outputs
        ]

    def adjoint(self, outputs: list, total: LayerControls | None = None, what: str = "adjoint") -> list:
        """Return the adjoints of the inputs (None: zero) and add those of the controls to a total, if given."""
        bars = Bars(self, what)
        for i, bar in zip(self.program.outputs, outputs, strict=True):
            bars.add(i, bar)
        result = [None] * self.program.parts
        for i in reversed(range(len(self.program.operations))):
            if bars[i] is not None:
                self.program.operations[i].adjoint(self, i, bars, result, total)
        return result

    def second_order(
        self, outputs: list, output_changes: list, direction: LayerControls, total: LayerControls
    ) -> tuple[list, list]:
        """Return the adjoints of the inputs and their changes; add the changes of those of the controls."""
        bars, dbars = Bars(self, "adjoint"), Bars(self, "adjoint change")
        self.direction = direction
        for i, bar, dbar in zip(self.program.outputs, outputs, output_changes, strict=True):
            bars.add(i, bar)
            dbars.add(i, dbar)
        result, changes = [None] * self.program.parts, [None] * self.program.parts
        for i in reversed(range(len(self.program.operations))):
            if bars[i] is not None or dbars[i] is not None:
                self.program.operations[i].second_order(self, i, bars, dbars, result, changes, total)
        return result, changes


class Bars:
    """Adjoints of a run's values, each None until something is added to it."""

    def __init__(self, run: Run, what: str):
        self.run, self.what = run, what
        self._bars: list = [None] * len(run.program.operations)

    def __getitem__(self, i: int):
        return self._bars[i]

    def target(self, i: int) -> tuple[np.ndarray, bool]:
        """Return the field to add to, and whether it holds something yet."""
        held = self._bars[i] is not None
        if not held:
            self._bars[i] = self.run.buffer(self.what, i)
        return self._bars[i], held

    def add(self, i: int, field: np.ndarray | None, factor: float = 1.0) -> None:
        if field is None:
            return
        target, held = self.target(i)
        owned = self.run.mesh.owned
        terms = ([1.0, factor], [target, field]) if held else ([factor], [field])
        self.run.primitives.weighted_sum(*terms, target[:owned])

    def add_part(self, i: int, part: int, field: np.ndarray) -> None:
        """Add to one part of an operation with several results."""
        if self._bars[i] is None:
            self._bars[i] = {}
        parts = self._bars[i]
        if part in parts:
            parts[part][: self.run.mesh.owned] += field[: self.run.mesh.owned]
        else:
            parts[part] = field
