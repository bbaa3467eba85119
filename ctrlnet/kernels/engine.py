"""A scheme with a right-hand side on one mesh: checked at once, compiled, factorised and assembled at first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ctrlnet.formulas.language import Pointwise
from ctrlnet.formulas.program import Program
from ctrlnet.kernels.code.precision import precision_of
from ctrlnet.kernels.fused.imex import ImplicitExplicitSweep
from ctrlnet.kernels.fused.sweep import FusedSweep
from ctrlnet.kernels.solves.diffusion import DiffusionOptions, Resolvents
from ctrlnet.kernels.solves.implicit import ImplicitStage
from ctrlnet.kernels.solves.levels import levels_of
from ctrlnet.kernels.sweep import Sweep
from ctrlnet.kernels.traced.on_mesh import mesh_for
from ctrlnet.kernels.traced.run import Run
from ctrlnet.kernels.traced.step_sweep import StateFields, StepSweep
from ctrlnet.operators.assembled import Operators

__all__ = ["Engine", "FormulaEngine", "NewtonOptions"]


class Engine(Protocol):
    """What makes the sweep of a network. It depends on no number of steps: networks of any depth share it."""

    @property
    def sweep(self) -> Sweep:
        """The sweep, made when it is first asked for."""


@dataclass(frozen=True)
class NewtonOptions:
    """PETSc options of the implicit stages.

    Parameters
    ----------
    nonlinear, linear
        Defaults of Newton's solves and of the derivatives', and what the user gives over them.
    prefix
        Of the options on the command line.
    """

    nonlinear: tuple[Mapping, Mapping]
    linear: tuple[Mapping, Mapping]
    prefix: str = "ctrlnet_"


class FormulaEngine:
    """The engine of a step that is a formula.

    What the formula is decides how it is run, whichever dynamics and scheme it comes from: a step of forward Euler with
    residual dynamics has kernels of its own, in which all its layers are one call; the same with a diffusion solve at
    its end runs in these kernels step by step; any other is run operation by operation.

    Parameters
    ----------
    program
        The traced formula.
    operators, precision
        Of the network.
    stages
        Rows of the controls that a step takes.
    newton, diffusion
        Options of its implicit stages and of its diffusion solves, if it has any.

    Raises
    ------
    ValueError
        If the precision is neither ``"double"`` nor ``"single"``.
    """

    def __init__(
        self, program: Program, operators: Operators, precision: str, stages: int,
        newton: NewtonOptions | None = None, diffusion: DiffusionOptions | None = None,
    ):
        self._precision = precision_of(precision)
        self.program, self.operators, self.stages = program, operators, stages
        self._newton, self._diffusion = newton, DiffusionOptions() if diffusion is None else diffusion

    @cached_property
    def sweep(self) -> Sweep:
        activation = self.program.fused_activation
        if activation is not None:
            return self._fused(activation)
        split = self.program.before_diffusion()
        if split is not None and split[0].fused_activation is not None:
            explicit, implicit = split
            solves = Resolvents(self.operators, self._precision, self._diffusion)
            return ImplicitExplicitSweep(
                self._fused(explicit.fused_activation), lambda h, r: solves(h * implicit.factor, r))
        return self._traced()

    def _fused(self, activation: Pointwise) -> FusedSweep:
        return FusedSweep(self.operators.table, self.program.features, activation, self._precision.name)

    def _traced(self) -> StepSweep:
        program, precision = self.program, self._precision.name
        solver: Callable[[Run], ImplicitStage] | None = None
        if self._newton is None:
            mesh = mesh_for(program, self.operators, precision)
        else:
            levels, newton = levels_of(self.operators), self._newton
            meshes = [mesh_for(program, level.operators, precision) for level in levels]
            mesh = meshes[0]
            # Without a hierarchy there is nothing for multigrid to work on.
            single = {"pc_type": "none"} if len(levels) == 1 else {}
            nonlinear, linear = (
                dict(defaults) | single | dict(given) for defaults, given in (newton.nonlinear, newton.linear))

            def solver(run: Run) -> ImplicitStage:
                return ImplicitStage(run, levels, meshes, nonlinear, linear, newton.prefix)

        mesh.resolvents = Resolvents(self.operators, self._precision, self._diffusion)
        fields = StateFields(
            self.operators.table, mesh.nodes, program.parts, program.features, mesh.primitives.dtype,
            mesh.primitives.image_block)
        return StepSweep(fields, self.stages, lambda images: Run(program, mesh, images, solver))
