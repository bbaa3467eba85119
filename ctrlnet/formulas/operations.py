r"""The operations of a program with their derivatives.

With :math:`\bar x` for the derivative of a functional with respect to x (its adjoint) and a dot for a change along
a direction, each operation :math:`y = f(x, s)` knows its value, its tangent :math:`\dot y`, its adjoint
:math:`\bar x \mathrel{+}= f_x^T \bar y,\ \bar s \mathrel{+}= f_s^T\bar y`, and the change of that adjoint along the
tangent. Fields include ghost rows, which an operation fills when it needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ctrlnet.formulas.coefficients import Coefficients
from ctrlnet.formulas.execution import Adjoints, ControlRows, Execution
from ctrlnet.formulas.language import Pointwise

__all__ = ["Activate", "Apply", "Combine", "Grow", "ImplicitDiffusion", "Input", "Operation", "inner_product"]


class ImplicitDiffusion(Protocol):
    """What is asked of an implicit diffusion: its operand, its diffusivity, the learned parameter's number if any."""

    @property
    def x(self) -> int: ...

    @property
    def factor(self) -> float: ...

    @property
    def column(self) -> int | None: ...


class Operation:
    """What a program asks an operation besides its derivatives; the answers of one that is like most."""

    def value(self, run: Execution, i: int) -> Any:
        """Return the operation's result, a field; i is its index in the program."""
        raise NotImplementedError

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        """Return the result's change, None for zero; ``what`` names the buffers."""
        raise NotImplementedError

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        """Add to the adjoints of the operands, and to those of the controls where there is a total."""
        raise NotImplementedError

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        """Add to the adjoints of the operands and to their changes, and to the change of those of the controls."""
        raise NotImplementedError

    def kinds(self) -> set[str]:
        """Return which sets of operators it applies."""
        return set()

    def activations(self) -> list[Pointwise]:
        """Return the functions it applies node by node."""
        return []

    def summed(self) -> set[int] | None:
        """Return what it sums, if it is a sum."""
        return None

    def held(self, run: Execution, fields: list) -> list[tuple[float, np.ndarray]]:
        """Return factors and fields of the terms that are not zero, if it is a sum."""
        raise NotImplementedError

    def diffuses(self) -> ImplicitDiffusion | None:
        """Return the operation itself if it is the implicit diffusion of a field."""
        return None

    def stage_formula(self) -> Any | None:
        """Return the program whose fixed point it finds, if it is an implicit stage."""
        return None


@dataclass(frozen=True)
class Input(Operation):
    """A part of the state."""

    part: int

    def value(self, run: Execution, i: int) -> Any:
        return run.inputs[self.part]

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        return run.input_changes[self.part]

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        result[self.part] = bars[i]

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        result[self.part], changes[self.part] = bars[i], dbars[i]


@dataclass(frozen=True)
class Apply(Operation):
    r""":math:`z = \sum_j S_j D_j x + b`, over one set of operators."""

    x: int
    rows: str
    coefficients: Coefficients
    bias: bool = False

    def kinds(self) -> set[str]:
        return {self.rows}

    @property
    def varies(self) -> bool:
        return self.coefficients.constant is None

    def value(self, run: Execution, i: int) -> Any:
        x, out = run.values[self.x], run.buffer("value", i)
        run.update(x, self.rows)
        b = run.controls.biases[self.coefficients.stage] if self.bias else None
        coefficients = self.coefficients.of(run.controls.coefficients)
        run.primitives.apply(run.mesh.rows[self.rows], coefficients, b, x, out)
        return out

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        rows, out, dx = run.mesh.rows[self.rows], run.buffer(what, i), changes[self.x]
        held = False
        if dx is not None:
            run.update(dx, self.rows)
            run.primitives.apply(rows, self.coefficients.of(run.controls.coefficients), None, dx, out)
            held = True
        if self.varies and run.direction is not None:
            b = run.direction.biases[self.coefficients.stage] if self.bias else None
            change = self.coefficients.of(run.direction.coefficients)
            run.primitives.apply(rows, change, b, run.values[self.x], out, held)
            held = True
        return out if held else None

    def _pull(self, run, z, bars, controls):
        target, held = bars.target(self.x)
        coefficients = self.coefficients.of(controls.coefficients)
        run.primitives.apply_transposed(run.mesh.rows[self.rows], coefficients, z, target, held)

    def _controls(self, run, z, x, total, with_bias=True):
        stage = self.coefficients.stage
        total.coefficients[stage] += self.coefficients.pull(run.primitives.contract(run.mesh.rows[self.rows], z, x))
        if self.bias and with_bias:
            total.biases[stage] += z[: run.mesh.owned].sum(axis=(0, 2), dtype=float)

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        z = bars[i]
        run.update(z, self.rows)
        self._pull(run, z, bars, run.controls)
        if self.varies and total is not None:
            self._controls(run, z, run.values[self.x], total)

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        z, dz, dx = bars[i], dbars[i], run.changes[self.x]
        if z is not None:
            run.update(z, self.rows)
            self._pull(run, z, bars, run.controls)
            if self.varies and run.direction is not None:
                self._pull(run, z, dbars, run.direction)
            if self.varies and dx is not None:
                self._controls(run, z, dx, total, with_bias=False)
        if dz is not None:
            run.update(dz, self.rows)
            self._pull(run, dz, dbars, run.controls)
            if self.varies:
                self._controls(run, dz, run.values[self.x], total)


@dataclass(frozen=True)
class Activate(Operation):
    r""":math:`a = \sigma(z)`."""

    z: int
    activation: Pointwise

    def activations(self) -> list[Pointwise]:
        return [self.activation]

    def value(self, run: Execution, i: int) -> Any:
        out = run.buffer("value", i)
        run.pointwise(self.activation).activate(run.values[self.z], out)
        return out

    def _kept(self, run, i):
        return run.values[i if self.activation.keeps_value else self.z]

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        if changes[self.z] is None:
            return None
        out = run.buffer(what, i)
        run.pointwise(self.activation).slope_times(self._kept(run, i), changes[self.z], out)
        return out

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        target, held = bars.target(self.z)
        run.pointwise(self.activation).slope_times(self._kept(run, i), bars[i], target, held)

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        kept, dz = self._kept(run, i), run.changes[self.z]
        if dbars[i] is not None:
            target, held = dbars.target(self.z)
            run.pointwise(self.activation).slope_times(kept, dbars[i], target, held)
        if bars[i] is not None:
            target, held = bars.target(self.z)
            run.pointwise(self.activation).slope_times(kept, bars[i], target, held)
            if dz is not None:
                target, held = dbars.target(self.z)
                if not held:
                    target[:] = 0
                run.pointwise(self.activation).curvature_times(kept, dz, bars[i], target)


@dataclass(frozen=True)
class Combine(Operation):
    r""":math:`\sum_i (\sum_p c_{ip} h^p)\, x_i`; without terms, zero."""

    terms: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]

    def summed(self) -> set[int] | None:
        return {x for x, _ in self.terms}

    def _factors(self, h):
        return [(x, sum(c * h**p for p, c in powers)) for x, powers in self.terms]

    def held(self, run: Execution, fields: list) -> list[tuple[float, np.ndarray]]:
        """Return factors and fields of the terms that are not zero."""
        return [(factor, fields[x]) for x, factor in self._factors(run.h) if fields[x] is not None]

    def _sum(self, run, fields, out):
        held = self.held(run, fields)
        if held:
            run.primitives.weighted_sum([c for c, _ in held], [f for _, f in held], out[: run.mesh.owned])
        return bool(held)

    def value(self, run: Execution, i: int) -> Any:
        out = run.buffer("value", i)
        if not self._sum(run, run.values, out):
            out[:] = 0
        return out

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        out = run.buffer(what, i)
        return out if self._sum(run, changes, out) else None

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        for x, factor in self._factors(run.h):
            bars.add(x, bars[i], factor)

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        for which in (bars, dbars):
            if which[i] is not None:
                self.adjoint(run, i, which, result, None)


@dataclass(frozen=True)
class Grow(Operation):
    r""":math:`y = e^r x`, r learned: :math:`\dot y = e^r\dot x + \dot r y`, :math:`\bar r = \bar y\cdot y`."""

    x: int
    stage: int
    column: int

    def _at(self, controls: ControlRows) -> float:
        return float(controls.parameters[self.stage, self.column])

    def _factor(self, run: Execution) -> float:
        with np.errstate(over="ignore"):  # the state is then not finite, which whoever propagates finds
            return float(np.exp(self._at(run.controls)))

    def value(self, run: Execution, i: int) -> Any:
        out = run.buffer("value", i)
        run.primitives.weighted_sum([self._factor(run)], [run.values[self.x]], out[: run.mesh.owned])
        return out

    def tangent(self, run: Execution, i: int, changes: list, what: str) -> Any:
        terms = [] if changes[self.x] is None else [(self._factor(run), changes[self.x])]
        if run.direction is not None:
            terms.append((self._at(run.direction), run.values[i]))
        if not terms:
            return None
        out = run.buffer(what, i)
        run.primitives.weighted_sum([c for c, _ in terms], [f for _, f in terms], out[: run.mesh.owned])
        return out

    def adjoint(
        self, run: Execution, i: int, bars: Adjoints, result: list, total: ControlRows | None
    ) -> None:
        bars.add(self.x, bars[i], self._factor(run))
        if total is not None:
            total.parameters[self.stage, self.column] += inner_product(run, bars[i], run.values[i])

    def second_order(
        self, run: Execution, i: int, bars: Adjoints, dbars: Adjoints, result: list, changes: list, total: ControlRows
    ) -> None:
        factor = self._factor(run)
        if bars[i] is not None:
            bars.add(self.x, bars[i], factor)
            if run.direction is not None:
                dbars.add(self.x, bars[i], factor * self._at(run.direction))
            if run.changes[i] is not None:
                total.parameters[self.stage, self.column] += inner_product(run, bars[i], run.changes[i])
        if dbars[i] is not None:
            dbars.add(self.x, dbars[i], factor)
            total.parameters[self.stage, self.column] += inner_product(run, dbars[i], run.values[i])


def inner_product(run: Execution, a: np.ndarray, b: np.ndarray) -> float:
    """Return this rank's sum over nodes, features and images, in double precision."""
    owned = run.mesh.owned
    return float(np.einsum("nci,nci->", a[:owned], b[:owned], dtype=np.float64))
