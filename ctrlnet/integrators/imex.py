r"""IMEX Euler: diffusion implicit, the network explicit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Formula, Language, State, sum_of
from ctrlnet.integrators.base import FormulaScheme
from ctrlnet.kernels.solves.diffusion import DiffusionOptions

__all__ = ["IMEX"]


@dataclass(frozen=True)
class IMEX(FormulaScheme):
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
        self.diffusion()  # refuses what no solver takes

    def diffusion(self) -> DiffusionOptions:
        """Return the options of the step's solves."""
        return DiffusionOptions(self.solver, self.solver_parameters)

    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula: the explicit one, then each stiff term's resolvent, one after the other.

        Raises
        ------
        ValueError
            If the dynamics have no stiff term to treat implicitly.
        """
        stiff = [term for term in dynamics.terms if term.stiff]
        if not stiff:
            raise ValueError(
                f"IMEX treats stiff terms implicitly, such as diffusion, and {dynamics.name} dynamics have none; it "
                "fits ReactionDiffusion(nu) and what has a Diffusion(nu), as in Residual() + Diffusion(nu)."
            )
        others = [term for term in dynamics.terms if not term.stiff]
        h = dynamics.step_size

        def step(language: Language, Y: State) -> State:
            X = Y + h * sum_of([(1.0, term.rate(language, 0, Y)) for term in others], dynamics.parts)
            for term in stiff:
                X = term.resolvent(language, 0, X)
            return X

        return step
