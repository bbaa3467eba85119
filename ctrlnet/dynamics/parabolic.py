r"""Parabolic dynamics: the gradient flow of a convex energy."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Parabolic"]


@dataclass(frozen=True)
class Parabolic(Dynamics):
    r""":math:`\dot Y = -K^* \sigma(KY + b)`.

    With sigma nondecreasing it is the gradient flow of :math:`\int \Sigma(KY + b)\,dx,\ \Sigma' = \sigma`: that energy
    decays, and two states with the same controls never part.

    Source: Ruthotto and Haber, "Deep neural networks motivated by partial differential equations", 2020.
    """

    activation: Activation = tanh

    def rate(self, language: Language, stage: int, state: State) -> State:
        (Y,) = state
        return State([-language.K_adjoint(language.activate(language.K(Y, stage), self.activation), stage)])
