r"""Backward Euler and the implicit midpoint rule, by Newton's method and multigrid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctrlnet.dynamics.system import Dynamics, RightHandSide
from ctrlnet.formulas.language import Formula, Language, State
from ctrlnet.integrators.base import FormulaScheme
from ctrlnet.kernels.engine import Engine, NewtonOptions
from ctrlnet.operators.assembled import Operators

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
class _OneStage(FormulaScheme):
    """U - theta h f(t + theta h, U) = Y_k, Y_{k+1} = Y_k + (U - Y_k) / theta."""

    solver_parameters: Mapping = field(default_factory=dict)
    derivative_parameters: Mapping = field(default_factory=dict)
    theta = 1.0

    def newton(self) -> NewtonOptions:
        """Return the options of the stage."""
        return NewtonOptions(
            (NEWTON_KRYLOV, self.solver_parameters), (DERIVATIVES, self.derivative_parameters))

    def engine(self, dynamics: RightHandSide, operators: Operators, features: int, precision: str) -> Engine:
        """Return what makes the sweeps; see :meth:`Integrator.engine`.

        Raises
        ------
        ValueError
            Also if the precision is single: Newton's tolerance is below its round-off.
        """
        found = super().engine(dynamics, operators, features, precision)
        if precision == "single":
            raise ValueError(
                f"Implicit steps solve to tolerances below single precision's round-off; received precision "
                f"{precision!r}. Use precision='double', or an explicit or IMEX scheme."
            )
        return found

    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula; see :meth:`FormulaScheme.step`."""
        theta, h = self.theta, dynamics.step_size

        def stage(language: Language, U: State) -> State:
            return theta * h * dynamics.rate(language, 0, U)

        def step(language: Language, Y: State) -> State:
            U = language.resolve(Y, stage, theta)
            return U if theta == 1.0 else Y + (U - Y) * (1 / theta)

        return step


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
    ``mg_levels_ksp_type``          smoother (``python``: that of :mod:`ctrlnet.kernels.solves.minimal_residual`)
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
