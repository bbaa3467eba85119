r"""Forward Euler: one layer of a ResNet is one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.dynamics import Residual
from ctrlnet.kernels import FusedSweep
from ctrlnet.kernels.stencil_table import StencilTable

__all__ = ["ForwardEuler"]


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

    def sweep(self, dynamics, table: StencilTable, features: int, precision: str) -> FusedSweep:
        """Return the fused sweeps of this scheme for the given dynamics.

        Raises
        ------
        ValueError
            If there is no fused sweep for the pair.
        """
        if not isinstance(dynamics, Residual):
            raise ValueError(
                f"ForwardEuler has no fused sweep for {type(dynamics).__name__} dynamics; it fits Residual."
            )
        return FusedSweep(table, features, dynamics.activation, precision)
