r"""IMEX Euler: diffusion implicit, the network explicit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ctrlnet.dynamics import ReactionDiffusion
from ctrlnet.failures import PropagationError
from ctrlnet.integrators.diffusion import check_solver, diffusion_solver
from ctrlnet.kernels import FusedSweep, ImplicitExplicitSweep, LearnedDiffusionSweep
from ctrlnet.kernels.imex import LinearSolve
from ctrlnet.operators import Operators

__all__ = ["IMEX"]

_LARGEST = 20.0  # logarithm of what a learned diffusivity may grow by; far below what rounding of G would spoil


@dataclass(frozen=True)
class IMEX:
    r""":math:`(I - h\nu\Delta_h) Y_{k+1} = Y_k + h\,\sigma(K(t_k)Y_k + b(t_k))`: first order.

    :math:`\Delta_h = -M_L^{-1}A` has no positive eigenvalue, so the implicit part is stable for any step and any
    mesh. The operator is factorised once a mesh and step size, and applied to all features of all images at
    once; its transpose is :math:`M_L (I - h\nu\Delta_h)^{-1} M_L^{-1}`. A learned diffusivity is factorised anew
    where it changes.

    Where the factors would be too large, conjugate gradients with geometric multigrid on the mesh's
    ``MeshHierarchy`` solve instead, to a tolerance at round-off:

    ==============================  ====================================================================
    option                          meaning (default)
    ==============================  ====================================================================
    ``ksp_type``, ``ksp_rtol``      Krylov method, its relative residual (cg, 1e-13; 1e-7 in single precision)
    ``ksp_max_it``                  most iterations (500)
    ``pc_type``                     ``mg`` on the mesh's hierarchy; ``jacobi`` where it has none
    ``mg_levels_ksp_max_it``        Chebyshev smoothing steps (2)
    ``mg_coarse_pc_type``           ``python``: the factors of the coarsest mesh
    ==============================  ====================================================================

    On the command line they have the prefix ``-ctrlnet_diffusion_``.

    Parameters
    ----------
    solver
        ``"direct"``, ``"multigrid"``, or ``"auto"``: direct up to 1 GiB of factors, which every rank holds, by an
        estimate for the mesh's dimension (some 1,200 x 1,200 squares, or 44 x 44 x 44 cubes).
    solver_parameters
        PETSc options of the multigrid solver, over its defaults.

    Raises
    ------
    ValueError
        If the solver is unknown, or direct with PETSc options.

    Source: Ascher, Ruuth and Spiteri, "Implicit-explicit Runge-Kutta methods for time-dependent PDEs", 1997.
    """

    solver: str = "auto"
    solver_parameters: Mapping = field(default_factory=dict)
    order = 1

    def __post_init__(self):
        check_solver(self.solver, self.solver_parameters)

    def control_times(self, T: float, steps: int) -> np.ndarray:
        """Return the times t_k at which step k takes its controls."""
        return T / steps * np.arange(steps)

    def sweep(self, dynamics, operators: Operators, features: int, precision: str) -> ImplicitExplicitSweep:
        """Return the sweeps of this scheme for the given dynamics.

        Raises
        ------
        ValueError
            If the dynamics have no diffusion to treat implicitly.
        """
        if not isinstance(dynamics, ReactionDiffusion):
            raise ValueError(
                f"IMEX treats diffusion implicitly, and {type(dynamics).__name__} dynamics have none; it fits "
                "ReactionDiffusion(nu)."
            )
        explicit = FusedSweep(operators.table, features, dynamics.activation, precision)
        inverse = diffusion_solver(operators, explicit, self.solver, self.solver_parameters)

        def solve(h: float, r: float = 0.0) -> LinearSolve:
            if not r <= _LARGEST:
                raise PropagationError(
                    f"The learned diffusivity nu exp(r) left its range: received r = {r:g}, at most {_LARGEST:g}. "
                    "Start from a larger nu, or regularise the controls more."
                )
            return inverse(h * dynamics.nu * math.exp(r))

        return (LearnedDiffusionSweep if dynamics.learned else ImplicitExplicitSweep)(explicit, solve)
