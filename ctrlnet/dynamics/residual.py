r"""Residual dynamics, the plain ResNet."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.activations import Activation, tanh
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.kernels.program import State

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

    def right_hand_side(self, Z):
        """Return dY/dt as UFL, given Z = K Y + b at a node."""
        return self.activation(Z)

    def rate(self, program, stage: int, state: State) -> State:
        (Y,) = state
        return State([program.activate(program.K(Y, stage))])
