r"""The operations of a program with their derivatives, and the runs over them.

With :math:`\bar x` for the derivative of a functional with respect to x (its adjoint) and a dot for a change along
a direction, each operation :math:`y = f(x, s)` knows its value, its tangent :math:`\dot y`, its adjoint
:math:`\bar x \mathrel{+}= f_x^T \bar y,\ \bar s \mathrel{+}= f_s^T\bar y`, and the change of that adjoint along the
tangent. Fields include ghost rows, which an operation fills when it needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctrlnet.kernels.coefficients import Coefficients, OnMesh

__all__ = ["Activate", "Apply", "Coefficients", "Combine", "Input", "OnMesh", "Pick", "Resolve", "Run"]


class Run:
    """A program with its fields for one chunk size on one mesh.

    ``values`` are those of the last :meth:`evaluate`, ``changes`` those of the last :meth:`tangent`.
    """

    def __init__(self, program, mesh: OnMesh, images: int, solver: Callable | None = None):
        self.program, self.mesh, self.images = program, mesh, images
        self.primitives = mesh.primitives
        count = len(program.operations)
        self._fields: dict[tuple, np.ndarray] = {}
        self.values: list = [None] * count
        self.changes: list = [None] * count
        self.inner: dict[int, Run] = {
            i: Run(o.inner, mesh, images) for i, o in enumerate(program.operations) if isinstance(o, Resolve)
        }
        self.solvers = {i: solver(run) for i, run in self.inner.items()} if solver else {}

    def at(self, S: np.ndarray, b: np.ndarray, h: float) -> Run:
        """Set the step's controls, (stages, J, C, C) and (stages, C), and size."""
        self.S, self.b, self.h = S, b, h
        for run in self.inner.values():
            run.at(S, b, h)
        return self

    def buffer(self, what: str, index: int, part: int = 0) -> np.ndarray:
        key = (what, index, part)
        if key not in self._fields:
            self._fields[key] = self.primitives.field(self.mesh.nodes, self.images)
        return self._fields[key]

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

    def tangent(self, inputs, dS=None, db=None, what: str = "change", changes: list | None = None) -> list:
        """Return the change of the outputs (None: zero) along a change of inputs and controls."""
        self.input_changes, self.dS, self.db = inputs, dS, db
        changes = self.changes if changes is None else changes
        for i, operation in enumerate(self.program.operations):
            changes[i] = operation.tangent(self, i, changes, what)
        return [changes[i] for i in self.program.outputs]

    def tangent_terms(self, inputs, what: str, changes: list) -> list[list[tuple[float, np.ndarray]]]:
        """Return the outputs' changes along one of the inputs as terms, factors and fields: last sums are not made."""
        self.input_changes, self.dS, self.db = inputs, None, None
        operations, last = self.program.operations, self.program.last_sums
        for i, operation in enumerate(operations):
            if i not in last:
                changes[i] = operation.tangent(self, i, changes, what)
        return [
            operations[i].held(self, changes) if i in last else ([] if changes[i] is None else [(1.0, changes[i])])
            for i in self.program.outputs
        ]

    def adjoint(self, outputs, gS=None, gb=None, what: str = "adjoint") -> list:
        """Return the adjoints of the inputs (None: zero) and add those of the controls to gS, gb if given."""
        bars = Bars(self, what)
        for i, bar in zip(self.program.outputs, outputs, strict=True):
            bars.add(i, bar)
        result = [None] * self.program.parts
        for i in reversed(range(len(self.program.operations))):
            if bars[i] is not None:
                self.program.operations[i].adjoint(self, i, bars, result, gS, gb)
        return result

    def second_order(self, outputs, output_changes, dS, gS, gb) -> tuple[list, list]:
        """Return the adjoints of the inputs and their changes; add the changes of those of the controls."""
        bars, dbars = Bars(self, "adjoint"), Bars(self, "adjoint change")
        self.dS = dS
        for i, bar, dbar in zip(self.program.outputs, outputs, output_changes, strict=True):
            bars.add(i, bar)
            dbars.add(i, dbar)
        result, changes = [None] * self.program.parts, [None] * self.program.parts
        for i in reversed(range(len(self.program.operations))):
            if bars[i] is not None or dbars[i] is not None:
                self.program.operations[i].second_order(self, i, bars, dbars, result, changes, gS, gb)
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


@dataclass(frozen=True)
class Input:
    """A part of the state."""

    part: int

    def value(self, run, i):
        return run.inputs[self.part]

    def tangent(self, run, i, changes, what):
        return run.input_changes[self.part]

    def adjoint(self, run, i, bars, result, gS, gb):
        result[self.part] = bars[i]

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        result[self.part], changes[self.part] = bars[i], dbars[i]


@dataclass(frozen=True)
class Apply:
    r""":math:`z = \sum_j S_j D_j x + b`, over one set of operators."""

    x: int
    rows: str
    coefficients: Coefficients
    bias: bool = False

    @property
    def varies(self) -> bool:
        return self.coefficients.constant is None

    def value(self, run, i):
        x, out = run.values[self.x], run.buffer("value", i)
        run.update(x, self.rows)
        b = run.b[self.coefficients.stage] if self.bias else None
        run.primitives.apply(run.mesh.rows[self.rows], self.coefficients.of(run.S), b, x, out)
        return out

    def tangent(self, run, i, changes, what):
        rows, out, dx = run.mesh.rows[self.rows], run.buffer(what, i), changes[self.x]
        held = False
        if dx is not None:
            run.update(dx, self.rows)
            run.primitives.apply(rows, self.coefficients.of(run.S), None, dx, out)
            held = True
        if self.varies and run.dS is not None:
            b = run.db[self.coefficients.stage] if self.bias else None
            run.primitives.apply(rows, self.coefficients.of(run.dS), b, run.values[self.x], out, held)
            held = True
        return out if held else None

    def _pull(self, run, z, bars, S):
        target, held = bars.target(self.x)
        run.primitives.apply_transposed(run.mesh.rows[self.rows], self.coefficients.of(S), z, target, held)

    def _controls(self, run, z, x, gS, gb):
        stage = self.coefficients.stage
        gS[stage] += self.coefficients.pull(run.primitives.contract(run.mesh.rows[self.rows], z, x))
        if self.bias and gb is not None:
            gb[stage] += z[: run.mesh.owned].sum(axis=(0, 2), dtype=float)

    def adjoint(self, run, i, bars, result, gS, gb):
        z = bars[i]
        run.update(z, self.rows)
        self._pull(run, z, bars, run.S)
        if self.varies and gS is not None:
            self._controls(run, z, run.values[self.x], gS, gb)

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        z, dz, dx = bars[i], dbars[i], run.changes[self.x]
        if z is not None:
            run.update(z, self.rows)
            self._pull(run, z, bars, run.S)
            if self.varies and run.dS is not None:
                self._pull(run, z, dbars, run.dS)
            if self.varies and dx is not None:
                self._controls(run, z, dx, gS, None)
        if dz is not None:
            run.update(dz, self.rows)
            self._pull(run, dz, dbars, run.S)
            if self.varies:
                self._controls(run, dz, run.values[self.x], gS, gb)


@dataclass(frozen=True)
class Activate:
    r""":math:`a = \sigma(z)`."""

    z: int

    def value(self, run, i):
        out = run.buffer("value", i)
        run.primitives.activate(run.values[self.z], out)
        return out

    def _kept(self, run, i):
        return run.values[i if run.primitives.keeps_value else self.z]

    def tangent(self, run, i, changes, what):
        if changes[self.z] is None:
            return None
        out = run.buffer(what, i)
        run.primitives.slope_times(self._kept(run, i), changes[self.z], out)
        return out

    def adjoint(self, run, i, bars, result, gS, gb):
        target, held = bars.target(self.z)
        run.primitives.slope_times(self._kept(run, i), bars[i], target, held)

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        kept, dz = self._kept(run, i), run.changes[self.z]
        if dbars[i] is not None:
            target, held = dbars.target(self.z)
            run.primitives.slope_times(kept, dbars[i], target, held)
        if bars[i] is not None:
            target, held = bars.target(self.z)
            run.primitives.slope_times(kept, bars[i], target, held)
            if dz is not None:
                target, held = dbars.target(self.z)
                if not held:
                    target[:] = 0
                run.primitives.curvature_times(kept, dz, bars[i], target)


@dataclass(frozen=True)
class Combine:
    r""":math:`\sum_i (\sum_p c_{ip} h^p)\, x_i`; without terms, zero."""

    terms: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]

    def _factors(self, h):
        return [(x, sum(c * h**p for p, c in powers)) for x, powers in self.terms]

    def held(self, run, fields) -> list[tuple[float, np.ndarray]]:
        """Return factors and fields of the terms that are not zero."""
        return [(factor, fields[x]) for x, factor in self._factors(run.h) if fields[x] is not None]

    def _sum(self, run, fields, out):
        held = self.held(run, fields)
        if held:
            run.primitives.weighted_sum([c for c, _ in held], [f for _, f in held], out[: run.mesh.owned])
        return bool(held)

    def value(self, run, i):
        out = run.buffer("value", i)
        if not self._sum(run, run.values, out):
            out[:] = 0
        return out

    def tangent(self, run, i, changes, what):
        out = run.buffer(what, i)
        return out if self._sum(run, changes, out) else None

    def adjoint(self, run, i, bars, result, gS, gb):
        for x, factor in self._factors(run.h):
            bars.add(x, bars[i], factor)

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        for which in (bars, dbars):
            if which[i] is not None:
                self.adjoint(run, i, which, None, None, None)


@dataclass(frozen=True)
class Pick:
    """One part of the result of an implicit stage."""

    stage: int
    part: int

    def value(self, run, i):
        return run.values[self.stage][self.part]

    def tangent(self, run, i, changes, what):
        return changes[self.stage][self.part]

    def adjoint(self, run, i, bars, result, gS, gb):
        bars.add_part(self.stage, self.part, bars[i])

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        for which in (bars, dbars):
            if which[i] is not None:
                which.add_part(self.stage, self.part, which[i])


@dataclass(frozen=True, eq=False)
class Resolve:
    r""":math:`U - g(U, s) = Y`, with :math:`A = I - g_U`.

    .. math::
        A \dot U = \dot Y + g_s \dot s, \qquad A^T w = \bar U,\quad \bar Y \mathrel{+}= w,\quad
        \bar s \mathrel{+}= g_s^T w, \qquad A^T \dot w = \dot{\bar U} + (g_U^T)^{\cdot}\, w.
    """

    y: tuple[int, ...]
    inner: object
    guess: float

    def value(self, run, i):
        right = [run.values[y] for y in self.y]
        U = [run.buffer("value", i, k) for k in range(len(right))]
        owned = run.mesh.owned
        for k, u in enumerate(U):
            u[:owned] = run.inputs[k][:owned]
            if run.following is not None:
                u[:owned] += self.guess * (run.following[k][:owned] - u[:owned])
        run.solvers[i].nonlinear(U, right)
        return U

    def tangent(self, run, i, changes, what):
        inner, solver = run.inner[i], run.solvers[i]
        nothing = [None] * len(self.y)
        forced = inner.tangent(nothing, run.dS, run.db) if run.dS is not None else nothing
        right = _sums(run, forced, [changes[y] for y in self.y])
        dU = [run.buffer(what, i, k) for k in range(len(self.y))]
        solver.linear(right, dU, transposed=False)
        inner.tangent(dU, run.dS, run.db)
        return dU

    def _solve_transposed(self, run, i, what, parts):
        w = [run.buffer(what, i, k) for k in range(len(self.y))]
        run.solvers[i].linear([parts.get(k) for k in range(len(self.y))], w, transposed=True)
        return w

    def adjoint(self, run, i, bars, result, gS, gb):
        w = self._solve_transposed(run, i, "w", bars[i])
        for y, part in zip(self.y, w, strict=True):
            bars.add(y, part)
        if gS is not None:
            run.inner[i].adjoint(w, gS, gb)

    def second_order(self, run, i, bars, dbars, result, changes, gS, gb):
        inner, right = run.inner[i], dict(dbars[i] or {})
        if bars[i] is not None:
            w = self._solve_transposed(run, i, "w", bars[i])
            for y, part in zip(self.y, w, strict=True):
                bars.add(y, part)
            _, turned = inner.second_order(w, [None] * len(w), run.dS, gS, gb)
            right = dict(enumerate(_sums(run, turned, [right.get(k) for k in range(len(w))])))
        dw = self._solve_transposed(run, i, "dw", right)
        for y, part in zip(self.y, dw, strict=True):
            dbars.add(y, part)
        inner.adjoint(dw, gS, gb)


def _sums(run, first, second):
    """Return the sums of two lists of fields, None standing for zero."""
    out = []
    for a, b in zip(first, second, strict=True):
        both = a is not None and b is not None
        out.append(a[: run.mesh.owned] + b[: run.mesh.owned] if both else (b if a is None else a))
    return out
