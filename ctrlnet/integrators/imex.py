r"""IMEX Euler: diffusion implicit, the network explicit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ctrlnet.dynamics import ReactionDiffusion
from ctrlnet.failures import PropagationError
from ctrlnet.kernels import DirectSolve, FusedSweep, ImplicitExplicitSweep, LearnedDiffusionSweep
from ctrlnet.kernels.substitution import gathered
from ctrlnet.operators import Operators, laplacian

__all__ = ["IMEX"]

_LARGEST = 20.0  # logarithm of what a learned diffusivity may grow by; far below what rounding of G would spoil


@dataclass(frozen=True)
class IMEX:
    r""":math:`(I - h\nu\Delta_h) Y_{k+1} = Y_k + h\,\sigma(K(t_k)Y_k + b(t_k))`: first order.

    :math:`\Delta_h = -M_L^{-1}A` has no positive eigenvalue, so the implicit part is stable for any step and any
    mesh. The operator is factorised once a mesh and step size, and applied to all features of all images at
    once; its transpose is :math:`M_L (I - h\nu\Delta_h)^{-1} M_L^{-1}`. A learned diffusivity is factorised anew
    where it changes.

    Source: Ascher, Ruuth and Spiteri, "Implicit-explicit Runge-Kutta methods for time-dependent PDEs", 1997.
    """

    order = 1

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
        diffusion = gathered(Operators(operators.space, [laplacian]).matrices[0])

        def solve(h: float, r: float = 0.0) -> DirectSolve:
            if not r <= _LARGEST:
                raise PropagationError(
                    f"The learned diffusivity nu exp(r) left its range: received r = {r:g}, at most {_LARGEST:g}. "
                    "Start from a larger nu, or regularise the controls more."
                )
            matrix = sp.eye_array(diffusion.shape[0], format="csr") - h * dynamics.nu * math.exp(r) * diffusion
            return DirectSolve(
                matrix, explicit.table.owned, explicit.dtype, explicit.lanes, operators.mesh.comm)

        return (LearnedDiffusionSweep if dynamics.learned else ImplicitExplicitSweep)(explicit, solve)
