r"""Stoermer-Verlet: a symplectic step for systems whose two halves drive each other."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.system import PartitionedDynamics
from ctrlnet.integrators.scheme import Scheme, step_sweep
from ctrlnet.kernels.program import State
from ctrlnet.kernels.step_sweep import StepSweep
from ctrlnet.operators import Operators

__all__ = ["StoermerVerlet"]


@dataclass(frozen=True)
class StoermerVerlet(Scheme):
    r"""For :math:`\dot Y = f(t, V),\ \dot V = g(t, Y)`, with the controls at the middle of the step:

    .. math::
        Y_{k+1/2} = Y_k + \tfrac h2 f(V_k),\quad V_{k+1} = V_k + h\,g(Y_{k+1/2}),\quad
        Y_{k+1} = Y_{k+1/2} + \tfrac h2 f(V_{k+1}).

    Second order, explicit, symmetric, and symplectic: with constant controls the energy of a Hamiltonian system
    does not drift.

    Source: Hairer, Lubich and Wanner, "Geometric numerical integration illustrated by the Stoermer-Verlet
    method", Acta Numerica 2003.
    """

    order = 2
    nodes = (0.5,)

    def sweep(self, dynamics, operators: Operators, features: int, precision: str) -> StepSweep:
        """Return the sweeps of this scheme for the given dynamics.

        Raises
        ------
        ValueError
            If the dynamics are not made of two halves that drive each other.
        """
        if not isinstance(dynamics, PartitionedDynamics):
            raise ValueError(
                f"StoermerVerlet alternates between two halves of a system, and {type(dynamics).__name__} dynamics "
                "have none; it fits Hyperbolic and Hamiltonian."
            )
        h = dynamics.step_size

        def step(program, state: State) -> State:
            half = state + 0.5 * h * dynamics.position_rate(program, 0, state)
            kicked = half + h * dynamics.momentum_rate(program, 0, half)
            return kicked + 0.5 * h * dynamics.position_rate(program, 0, kicked)

        return step_sweep(step, dynamics, operators, features, precision, 1)
