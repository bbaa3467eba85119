r"""Backward Euler and the implicit midpoint rule, by Newton's method and multigrid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctrlnet.hierarchy import interpolation_matrix, operators_by_level
from ctrlnet.integrators.scheme import Scheme, mesh_for, require_formula, traced_sweep
from ctrlnet.kernels.implicit import ImplicitStage, Level
from ctrlnet.kernels.program import Program, State
from ctrlnet.kernels.step_sweep import StepSweep
from ctrlnet.operators import Operators

__all__ = ["BackwardEuler", "ImplicitMidpoint", "NEWTON_KRYLOV", "DERIVATIVES"]

NEWTON_KRYLOV = {
    "snes_rtol": 1e-8, "snes_stol": 0.0, "snes_atol": 1e-12, "snes_max_it": 20, "snes_linesearch_type": "basic",
    "ksp_type": "fgmres", "ksp_rtol": 1e-3, "ksp_max_it": 100, "pc_type": "mg",
    "mg_levels_ksp_type": "python", "mg_levels_ksp_max_it": 3, "mg_levels_pc_type": "none",
    "mg_levels_ksp_convergence_test": "skip",
    "mg_coarse_ksp_type": "gmres", "mg_coarse_ksp_rtol": 1e-2, "mg_coarse_ksp_max_it": 20, "mg_coarse_pc_type": "none",
}
DERIVATIVES = {k: v for k, v in NEWTON_KRYLOV.items() if not k.startswith("snes")} | {
    "ksp_rtol": 1e-13, "ksp_atol": 1e-300, "ksp_max_it": 300, "ksp_gmres_restart": 100}


@dataclass(frozen=True)
class _OneStage(Scheme):
    """U - theta h f(t + theta h, U) = Y_k, Y_{k+1} = Y_k + (U - Y_k) / theta."""

    solver_parameters: Mapping = field(default_factory=dict)
    derivative_parameters: Mapping = field(default_factory=dict)
    theta = 1.0

    def sweep(self, dynamics, operators: Operators, features: int, precision: str) -> StepSweep:
        """Return the sweeps of this scheme for the given dynamics.

        Raises
        ------
        ValueError
            If the dynamics are no formula, or the precision is single: Newton's tolerance is below its round-off.
        """
        require_formula(self, dynamics)
        if precision != "double":
            raise ValueError(
                f"Implicit steps solve to tolerances below single precision's round-off; received precision "
                f"{precision!r}. Use precision='double', or an explicit or IMEX scheme."
            )
        theta, h = self.theta, dynamics.step_size

        def stage(program: Program, U: State) -> State:
            return theta * h * dynamics.rate(program, 0, U)

        def step(program: Program, Y: State) -> State:
            U = program.resolve(Y, stage, theta)
            return U if theta == 1.0 else Y + (U - Y) * (1 / theta)

        program = Program.of(step, dynamics.parts, features)
        levels = _levels(program, dynamics, operators, precision)
        # Without a hierarchy there is nothing for multigrid to work on.
        single = {"pc_type": "none"} if len(levels) == 1 else {}
        parameters = NEWTON_KRYLOV | single | dict(self.solver_parameters)
        derivative = DERIVATIVES | single | dict(self.derivative_parameters)

        def solver(run) -> ImplicitStage:
            return ImplicitStage(run, levels, parameters, derivative, "ctrlnet_")

        return traced_sweep(program, levels[0].mesh, 1, solver)


@dataclass(frozen=True)
class BackwardEuler(_OneStage):
    r""":math:`Y_{k+1} = Y_k + h f(t_{k+1}, Y_{k+1})`: first order, stable for any step where f is dissipative.

    ==============================  ====================================================================
    option                          meaning (default)
    ==============================  ====================================================================
    ``snes_rtol``, ``snes_max_it``  Newton: relative residual, most iterations (1e-8, 20)
    ``ksp_type``, ``ksp_rtol``      Krylov method of a Newton step, its relative residual (fgmres, 1e-3)
                                    The last step is solved to Newton's tolerance where that is near.
    ``pc_type``                     ``mg`` on the mesh's hierarchy; ``none`` where it has none
    ``mg_levels_ksp_type``          smoother (``python``: that of :mod:`ctrlnet.kernels.minimal_residual`)
    ``mg_levels_ksp_max_it``        smoothing steps (3)
    ``derivative_ksp_rtol``         of tangent and transposed solves (1e-13)
    ==============================  ====================================================================

    On the command line they have the prefix ``-ctrlnet_``.

    Parameters
    ----------
    solver_parameters, derivative_parameters
        Options over :data:`NEWTON_KRYLOV` and :data:`DERIVATIVES`, of Newton's solves and of the derivatives'.
    """

    order = 1
    nodes = (1.0,)
    theta = 1.0


@dataclass(frozen=True)
class ImplicitMidpoint(_OneStage):
    r""":math:`Y_{k+1} = Y_k + h f(t_{k+1/2}, \tfrac12(Y_k + Y_{k+1}))`: second order, symplectic, A-stable.

    Parameters and options: see :class:`BackwardEuler`.
    """

    order = 2
    nodes = (0.5,)
    theta = 0.5


def _levels(program: Program, dynamics, operators: Operators, precision: str) -> list[Level]:
    """Return the levels of the operators' mesh and all coarser ones of its hierarchy, finest first."""
    sets = operators_by_level(operators)
    meshes = [mesh_for(program, dynamics, D, precision) for D in sets]
    levels = []
    for mesh, D, coarse in zip(meshes, sets, sets[1:], strict=False):
        with D.lumped_mass.dat.vec_ro as mass, coarse.lumped_mass.dat.vec_ro as coarse_mass:
            levels.append(Level(mesh, (interpolation_matrix(coarse.space, D.space), mass, coarse_mass)))
    return [*levels, Level(meshes[-1])]
