r"""Stoermer-Verlet: a symplectic step for systems whose two halves drive each other."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Formula, Language, State
from ctrlnet.integrators.base import FormulaScheme

__all__ = ["StoermerVerlet"]


@dataclass(frozen=True)
class StoermerVerlet(FormulaScheme):
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

    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula.

        Raises
        ------
        ValueError
            If the dynamics are not made of two halves that drive each other.
        """
        if dynamics.halves is None:
            raise ValueError(
                f"StoermerVerlet alternates between two halves of a system, and {dynamics.name} dynamics "
                "have none; it fits Hyperbolic and Hamiltonian."
            )
        (position, momentum), h = dynamics.halves, dynamics.step_size

        def step(language: Language, state: State) -> State:
            half = state + 0.5 * h * position(language, 0, state)
            kicked = half + h * momentum(language, 0, half)
            return kicked + 0.5 * h * position(language, 0, kicked)

        return step
