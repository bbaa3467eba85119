r"""Forward Euler: one layer of a ResNet is one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.dynamics import Residual
from ctrlnet.integrators.runge_kutta import RungeKutta, Tableau
from ctrlnet.integrators.scheme import require_formula
from ctrlnet.kernels import FusedSweep
from ctrlnet.operators import Operators

__all__ = ["ForwardEuler"]


_TABLEAU = Tableau("forward Euler", (), (1.0,), 1)


@dataclass(frozen=True)
class ForwardEuler:
    r""":math:`Y_{k+1} = Y_k + h f(t_k, Y_k)`: explicit, first order.

    Stable while the eigenvalues of :math:`h\,\sigma' K` stay within distance 1 of -1, so the step must shrink
    with the mesh width.
    """

    order = 1

    def control_times(self, T: float, steps: int) -> np.ndarray:
        """Return the times t_k at which step k takes its controls."""
        return T / steps * np.arange(steps)

    def sweep(self, dynamics, operators: Operators, features: int, precision: str) -> FusedSweep:
        """Return the sweeps of this scheme: fused for Residual, else of its formula.

        Raises
        ------
        ValueError
            If the dynamics are no formula.
        """
        require_formula(self, dynamics)
        if not isinstance(dynamics, Residual):
            return RungeKutta(_TABLEAU).sweep(dynamics, operators, features, precision)
        return FusedSweep(operators.table, features, dynamics.activation, precision)
