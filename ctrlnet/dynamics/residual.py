r"""Residual dynamics, the plain ResNet."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual(Dynamics):
    r""":math:`\dot Y = \sigma(K(t) Y + b(t))` with :math:`K = \sum_j s_j \otimes D_j`.

    Parameters
    ----------
    activation
        sigma, applied node by node.

    Source: He et al., "Deep residual learning for image recognition", 2016; as an ODE, Haber and Ruthotto,
    "Stable architectures for deep neural networks", 2017.
    """

    activation: Activation = tanh

    def rate(self, language: Language, stage: int, state: State) -> State:
        (Y,) = state
        return State([language.activate(language.K(Y, stage), self.activation)])
