r"""Second-order hyperbolic dynamics: features as waves."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.system import PartitionedDynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Hyperbolic"]


@dataclass(frozen=True)
class Hyperbolic(PartitionedDynamics):
    r""":math:`\ddot Y = -K^*\sigma(KY + b)`, as :math:`\dot Y = V,\ \dot V = -K^*\sigma(KY + b)`, V(0) = 0.

    The energy :math:`\int \tfrac12|V|^2 + \Sigma(KY + b)\,dx,\ \Sigma' = \sigma`, is constant while the controls
    are. The velocities V are the network's own: images start Y, and the readout sees Y.

    Source: Ruthotto and Haber, "Deep neural networks motivated by partial differential equations", 2020.
    """

    activation: Activation = tanh
    parts = 2

    def position_rate(self, language: Language, stage: int, state: State) -> State:
        return State([state[1], None])

    def momentum_rate(self, language: Language, stage: int, state: State) -> State:
        force = language.K_adjoint(language.activate(language.K(state[0], stage), self.activation), stage)
        return State([None, -force])
