"""The operations of a program that solve: linear resolvents, and the stages of implicit steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ctrlnet.formulas.execution import Adjoints, ControlRows, Execution
from ctrlnet.formulas.language import Pointwise
from ctrlnet.formulas.operations import Operation, inner_product

__all__ = ["Pick", "Resolve", "Resolvent"]


@dataclass(frozen=True)
class Resolvent(Operation):
    r""":math:`G y = x` with :math:`G = I - h\nu e^r\Delta_h`, r a learned parameter or 0.

    Derivatives need no product with the Laplacian, because :math:`(I - G) y = y - x`, and with
    :math:`p = G^{-T}\bar y` in the same way :math:`(I - G)^T p = p - \bar y`:

    .. math::
        \dot y &= G^{-1}(\dot x + \dot r y) - \dot r y, \qquad
        \bar x \mathrel{+}= p, \quad \bar r \mathrel{+}= \langle p - \bar y, y\rangle, \\
        \dot p &= G^{-T}\bigl(\dot{\bar y} + \dot r (p - \bar y)\bigr), \qquad
        \dot{\bar r} \mathrel{+}= \langle\dot p - \dot{\bar y}, y\rangle + \langle p - \bar y, \dot y\rangle.
    """

    x: int
    stage: int
    factor: float
    column: int | None

    def diffuses(self) -> Resolvent | None:
        return self

    def _at(self, controls: ControlRows) -> float:
        return 0.0 if self.column is None else float(controls.parameters[self.stage, self.column])

    def _solve(self, run: Execution, field: np.ndarray, transposed: bool) -> None:
        run.resolvent(run.h * self.factor, self._at(run.controls))(field[: run.mesh.owned], transposed)

    def _copy(self, run: Execution, what: str, i: int, field: np.ndarray | None) -> np.ndarray:
        out, owned = run.buffer(what, i), run.mesh.owned
        out[:owned] = 0 if field is None else field[:owned]
        return out

    def value(self, run: Execution, i: int) -> Any:
        out = self._copy(run, "value", i, run.values[self.x])
        self._solve(run, out, False)
        return out

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        rate = 0.0 if run.direction is None else self._at(run.direction)
        if changes[self.x] is None and not rate:
            return None
        out, owned = self._copy(run, what, i, changes[self.x]), run.mesh.owned
        if rate:
            out[:owned] += rate * run.values[i][:owned]
        self._solve(run, out, False)
        if rate:
            out[:owned] -= rate * run.values[i][:owned]
        return out

    def _learns(
        self, run: Execution, total: ControlRows | None, change: np.ndarray, y: np.ndarray | None
    ) -> None:
        if self.column is not None and total is not None and y is not None:
            total.parameters[self.stage, self.column] += inner_product(run, change, y)

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        owned = run.mesh.owned
        p = self._copy(run, "p", i, bars[i])
        self._solve(run, p, True)
        bars.add(self.x, p)
        self._learns(run, total, p[:owned] - bars[i][:owned], run.values[i])

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        owned, dp = run.mesh.owned, self._copy(run, "dp", i, dbars[i])
        if bars[i] is not None:
            p = self._copy(run, "p", i, bars[i])
            self._solve(run, p, True)
            bars.add(self.x, p)
            first = p[:owned] - bars[i][:owned]
            if run.direction is not None:
                dp[:owned] += self._at(run.direction) * first
            self._learns(run, total, first, run.changes[i])
        self._solve(run, dp, True)
        dbars.add(self.x, dp)
        second = dp[:owned] if dbars[i] is None else dp[:owned] - dbars[i][:owned]
        self._learns(run, total, second, run.values[i])


@dataclass(frozen=True)
class Pick(Operation):
    """One part of the result of an implicit stage."""

    stage: int
    part: int

    def value(self, run: Execution, i: int) -> Any:
        return run.values[self.stage][self.part]

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        return changes[self.stage][self.part]

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        bars.add_part(self.stage, self.part, bars[i])

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        for which in (bars, dbars):
            if which[i] is not None:
                which.add_part(self.stage, self.part, which[i])


@dataclass(frozen=True, eq=False)
class Resolve(Operation):
    r""":math:`U - g(U, s) = Y`, with :math:`A = I - g_U`.

    .. math::
        A \dot U = \dot Y + g_s \dot s, \qquad A^T w = \bar U,\quad \bar Y \mathrel{+}= w,\quad
        \bar s \mathrel{+}= g_s^T w, \qquad A^T \dot w = \dot{\bar U} + (g_U^T)^{\cdot}\, w.
    """

    y: tuple[int, ...]
    inner: Any
    guess: float

    def kinds(self) -> set[str]:
        return self.inner.kinds()

    def activations(self) -> list[Pointwise]:
        return self.inner.activations()

    def stage_formula(self) -> Any | None:
        return self.inner

    def value(self, run: Execution, i: int) -> Any:
        right = [run.values[y] for y in self.y]
        U = [run.buffer("value", i, k) for k in range(len(right))]
        owned = run.mesh.owned
        for k, u in enumerate(U):
            u[:owned] = run.inputs[k][:owned]
            if run.following is not None:
                u[:owned] += self.guess * (run.following[k][:owned] - u[:owned])
        run.solvers[i].nonlinear(U, right)
        return U

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        inner, solver = run.inner[i], run.solvers[i]
        nothing = [None] * len(self.y)
        forced = inner.tangent(nothing, run.direction) if run.direction is not None else nothing
        right = _sums(run, forced, [changes[y] for y in self.y])
        dU = [run.buffer(what, i, k) for k in range(len(self.y))]
        solver.linear(right, dU, transposed=False)
        inner.tangent(dU, run.direction)
        return dU

    def _solve_transposed(self, run, i, what, parts):
        w = [run.buffer(what, i, k) for k in range(len(self.y))]
        run.solvers[i].linear([parts.get(k) for k in range(len(self.y))], w, transposed=True)
        return w

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        w = self._solve_transposed(run, i, "w", bars[i])
        for y, part in zip(self.y, w, strict=True):
            bars.add(y, part)
        if total is not None:
            run.inner[i].adjoint(w, total)

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        inner, right = run.inner[i], dict(dbars[i] or {})
        if bars[i] is not None:
            w = self._solve_transposed(run, i, "w", bars[i])
            for y, part in zip(self.y, w, strict=True):
                bars.add(y, part)
            _, turned = inner.second_order(w, [None] * len(w), run.direction, total)
            right = dict(enumerate(_sums(run, turned, [right.get(k) for k in range(len(w))])))
        dw = self._solve_transposed(run, i, "dw", right)
        for y, part in zip(self.y, dw, strict=True):
            dbars.add(y, part)
        inner.adjoint(dw, total)


def _sums(run, first, second):
    """Return the sums of two lists of fields, None standing for zero."""
    out = []
    for a, b in zip(first, second, strict=True):
        both = a is not None and b is not None
        out.append(a[: run.mesh.owned] + b[: run.mesh.owned] if both else (b if a is None else a))
    return out
