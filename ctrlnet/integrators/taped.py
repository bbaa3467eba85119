"""One step of a chunk, taped by pyadjoint once and replayed for every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from firedrake import (
    Cofunction,
    Constant,
    ExtrudedMesh,
    Function,
    MixedFunctionSpace,
    TensorFunctionSpace,
    VectorFunctionSpace,
    solve,
)
from firedrake.adjoint import Control, ReducedFunctional
from firedrake.adjoint_utils.blocks import NonlinearVariationalSolveBlock
from firedrake.exceptions import ConvergenceError

from ctrlnet.errors import StageSolveError
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.traced.step_sweep import StateFields, StepSweep
from ctrlnet.operators.assembled import Operators
from ctrlnet.own_tape import own_tape

__all__ = ["StepSpaces", "TapedEngine", "TapedRun"]

# (state, coefficients and biases of each stage, h) -> nothing: the state is stepped in place.
TapedStep = Callable[[Function, Sequence[Function], Sequence[Function], Constant], None]


class StepSpaces:
    """Spaces of the states of a chunk and of a stage's controls, on one mesh that holds all images.

    Images do not see each other, and a form is that of one image. So each is a layer of an extruded mesh, on which
    functions are constant across a layer and jump between layers: integrals over the cells of all layers, of height 1,
    are the sums over the images, and matrices have a block for each. One image alone is on the mesh itself.

    A form must find its coefficients on its mesh: controls are piecewise constant functions with one value all over.
    The derivative with respect to that value is the sum over the cells, as in :mod:`ctrlnet.network.plain`.

    Parameters
    ----------
    operators
        On the scalar space of one feature of one image.
    features, parts, images
        C, fields of a state, images of a chunk.

    Raises
    ------
    ValueError
        If the mesh cannot be extruded: of two dimensions at most, and plane.
    """

    def __init__(self, operators: Operators, features: int, parts: int, images: int):
        mesh, element = operators.mesh, operators.space.ufl_element()
        if images == 1:
            across = constant = {}
        elif mesh.topological_dimension > 2 or mesh.geometric_dimension != mesh.topological_dimension:
            raise ValueError(
                f"Several images are the layers of an extruded mesh, and a mesh of {mesh.topological_dimension} "
                f"dimensions in {mesh.geometric_dimension} cannot be extruded. Step one at a time: "
                "Irksome(tableau, images=1)."
            )
        else:
            mesh = ExtrudedMesh(mesh, layers=images, layer_height=1.0)
            across, constant = dict(vfamily="DG", vdegree=0), dict(vfamily="R", vdegree=0)
        self.images, self.features = images, features
        part = VectorFunctionSpace(mesh, element.family(), 1, dim=features, **across)
        self.state = part if parts == 1 else MixedFunctionSpace([part] * parts)
        self.s = TensorFunctionSpace(mesh, "DG", 0, shape=(len(operators), features, features), **constant)
        self.b = VectorFunctionSpace(mesh, "DG", 0, dim=features, **constant)

    def fields(self, function: Function | Cofunction, write: bool = False) -> list[np.ndarray]:
        """Return views of the owned rows of all parts, (nodes, C, images)."""
        data = (part.data_wo if write else part.data_ro for part in function.dat)
        return [part.reshape(-1, self.images, self.features).swapaxes(1, 2) for part in data]


class TapedRun:
    r"""A step :math:`Y_{k+1} = \Phi(Y_k; s, b, h)` of Firedrake's, with the methods of a run of a program.

    pyadjoint annotates the step the first time it is run with a size, on a tape of its own; from then on the tape is
    replayed, and its adjoint, tangent and Hessian are the derivatives. No solver is created for a batch.

    Parameters
    ----------
    step
        Steps a state in place.
    spaces
        Of state and controls.
    stages
        Times at which a step takes its controls.
    name
        Of the scheme, for messages.
    derivative_parameters
        PETSc options of tangent solves. (Firedrake's tape gives the solver's own options to the transposed solves,
        but none to the tangent ones.)
    """

    def __init__(
        self, step: TapedStep, spaces: StepSpaces, stages: int, name: str, derivative_parameters: dict
    ):
        self._step, self._spaces, self._name = step, spaces, name
        self._stages, self._parameters = stages, derivative_parameters
        self._functionals: dict[float, ReducedFunctional] = {}  # by step size, which a tape holds fast
        self._h = 1.0
        self.solvers: dict[int, Any] = {}  # the tape's own count nothing
        self._values, self._changes = self._functions(), self._functions()
        self._adjoint, self._adjoint_change = (Cofunction(spaces.state.dual()) for _ in range(2))

    def _functions(self) -> list[Function]:
        """Return a state and the controls of all stages: s, s, ..., b, b, ..."""
        spaces = self._spaces
        return [Function(V) for V in (spaces.state, *[spaces.s] * self._stages, *[spaces.b] * self._stages)]

    # Between arrays and functions.

    def _write_state(self, target: Function | Cofunction, fields: Sequence[np.ndarray | None]) -> None:
        for part, field in zip(self._spaces.fields(target, write=True), fields, strict=True):
            part[:] = 0 if field is None else field[: len(part)]

    def _write_controls(self, targets: Sequence[Function], values: LayerControls) -> None:
        for function, value in zip(targets, (*values.coefficients, *values.biases), strict=True):
            function.dat.data_wo[:] = value

    def _add_controls(self, derivatives: Sequence[Cofunction], out: LayerControls) -> None:
        """Add the derivatives with respect to the controls' values: the sums over this rank's cells."""
        for total, derivative in zip((*out.coefficients, *out.biases), derivatives, strict=True):
            total += derivative.dat.data_ro.sum(axis=0)

    # The tape.

    def _taped(self) -> ReducedFunctional:
        """Run the step from the present values and return the map of its inputs to the state after it."""
        with own_tape() as tape:
            inputs = [v.copy(deepcopy=True) for v in self._values]
            controls = [Control(f) for f in inputs]
            state = inputs[0]
            self._step(state, inputs[1 : 1 + self._stages], inputs[1 + self._stages :], Constant(self._h))
            functional = ReducedFunctional(state, controls, tape=tape)
        for block in tape.get_blocks():
            if isinstance(block, NonlinearVariationalSolveBlock):
                block._assembled_solve = self._tangent_solve
            for read in block.get_dependencies():
                # Coefficients of the form have the values that they have when the tape is replayed.
                if read.output.block_variable is read and all(read.output is not control for control in inputs):
                    read.checkpoint = None
        return functional

    def _tangent_solve(self, A, right, out, bcs, **kwargs):
        solve(A, out, right, solver_parameters=self._parameters)
        return out

    def _solved(self, what: str, solve: Callable):
        """Run part of the tape; a solve that does not converge is an error that optimisers handle."""
        try:
            return solve()
        except ConvergenceError as failure:
            raise StageSolveError(
                f"{self._name}: {what} of a step of h = {self._h:g} did not converge. Take more layers or "
                f"smaller controls, or other solver_parameters. Firedrake says: {failure}"
            ) from failure

    @property
    def _functional(self) -> ReducedFunctional:
        return self._functionals[self._h]

    # The methods of a run.

    def at(self, controls: LayerControls, h: float) -> TapedRun:
        """Set the step's controls, a row a stage, and its size."""
        self._h = float(h)
        self._write_controls(self._values[1:], controls)
        return self

    def evaluate(self, inputs: list[np.ndarray], following: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Return all parts of the state after the step; derivatives are those at these inputs."""
        self._write_state(self._values[0], inputs)
        if self._h not in self._functionals:
            self._functionals[self._h] = self._solved("a solve", self._taped)
        return self._spaces.fields(self._solved("a solve", lambda: self._functional(self._values)))

    def tangent(self, inputs: list[np.ndarray], direction: LayerControls) -> list[np.ndarray]:
        """Return the change of the state after the step along a change of inputs and controls."""
        self._write_state(self._changes[0], inputs)
        self._write_controls(self._changes[1:], direction)
        return self._spaces.fields(self._solved("a tangent solve", lambda: self._functional.tlm(self._changes)))

    def adjoint(self, outputs: list, total: LayerControls) -> list[np.ndarray]:
        """Return the adjoints of the inputs and add those of the controls to a total."""
        state, *controls = self._derivative(outputs)
        self._add_controls(controls, total)
        return self._spaces.fields(state)

    def _derivative(self, outputs: list) -> list[Cofunction]:
        self._write_state(self._adjoint, outputs)
        return self._solved("a transposed solve", lambda: self._functional.derivative(adj_input=self._adjoint))

    def second_order(
        self, outputs: list, output_changes: list, direction: LayerControls, total: LayerControls
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the adjoints of the inputs and their changes along the last tangent; add those of the controls."""
        state = self._spaces.fields(self._derivative(outputs)[0])
        self._write_state(self._adjoint_change, output_changes)
        change, *controls = self._solved("a transposed solve", lambda: self._functional.hessian(
            self._changes, hessian_input=self._adjoint_change, evaluate_tlm=False))
        self._add_controls(controls, total)
        return state, self._spaces.fields(change)


class TapedEngine:
    """The engine of a taped step; see :class:`~ctrlnet.kernels.engine.Engine`.

    Parameters
    ----------
    step
        Steps a state in place.
    operators, features, parts, images
        As those of :class:`StepSpaces`; ``images`` are stepped together.
    stages, name, derivative_parameters
        As those of :class:`TapedRun`.
    """

    def __init__(
        self, step: TapedStep, operators: Operators, features: int, parts: int, images: int, stages: int, name: str,
        derivative_parameters: dict,
    ):
        self._step, self._mesh, self._size = step, (operators, features, parts), images
        self._run = stages, name, derivative_parameters

    @cached_property
    def sweep(self) -> StepSweep:
        operators, features, parts = self._mesh
        table = operators.table
        fields = StateFields(table, table.nodes, parts, features, np.dtype(np.float64), self._size, most_blocks=1)
        return StepSweep(
            fields, self._run[0], lambda images: TapedRun(self._step, StepSpaces(*self._mesh, images), *self._run))
