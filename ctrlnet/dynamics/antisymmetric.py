r"""Antisymmetric dynamics: features are transported and neither grow nor decay."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Antisymmetric"]


@dataclass(frozen=True)
class Antisymmetric(Dynamics):
    r""":math:`\dot Y = \sigma((K - K^*) Y + b)`, :math:`K^* = M_L^{-1}K^TM_L` the adjoint in the lumped inner product.

    Its Jacobian :math:`\sigma'(K - K^*)` has an imaginary spectrum; where :math:`\sigma(z) = z` and b = 0 the norm of
    Y is constant.

    Source: Haber and Ruthotto, "Stable architectures for deep neural networks", 2017.
    """

    activation: Activation = tanh

    def rate(self, language: Language, stage: int, state: State) -> State:
        (Y,) = state
        return State([language.activate(language.K(Y, stage) - language.K_adjoint(Y, stage), self.activation)])
