r"""Hamiltonian dynamics: two halves of the features drive each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.system import PartitionedDynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Hamiltonian"]


@dataclass(frozen=True)
class Hamiltonian(PartitionedDynamics):
    r"""With X = (Y, Z) the two halves of the features and K block diagonal,

    .. math:: \dot Y = K_Z^*\sigma(K_Z Z + b_Z), \qquad \dot Z = -K_Y^*\sigma(K_Y Y + b_Y).

    :math:`H = \int \Sigma(K_Y Y + b_Y) + \Sigma(K_Z Z + b_Z)\,dx,\ \Sigma' = \sigma`, is constant while the
    controls are. Only the diagonal blocks of s act; the derivative with respect to the others is zero.

    Raises
    ------
    ValueError
        When a network is built: if the number of features is odd.

    Source: Chang, Meng, Haber, Ruthotto, Begert and Holtham, "Reversible architectures for arbitrarily deep
    residual neural networks", 2018.
    """

    activation: Activation = tanh

    def _drive(self, language: Language, stage: int, state: State, source: slice, target: slice, sign: float) -> State:
        (X,) = state
        mask, turn = np.zeros((language.features,) * 2), np.zeros((language.features,) * 2)
        mask[source, source] = 1.0
        turn[target, source] = sign * np.eye(language.features // 2)
        force = language.activate(language.K(X, stage, mask), self.activation)
        return State([language.K_adjoint(force, stage, turn, mask)])

    def _halves(self, language: Language) -> tuple[slice, slice]:
        half, odd = divmod(language.features, 2)
        if odd:
            raise ValueError(
                f"Hamiltonian dynamics split the features into two halves; received {language.features} features. "
                "Use an even number."
            )
        return slice(0, half), slice(half, None)

    def position_rate(self, language: Language, stage: int, state: State) -> State:
        Y, Z = self._halves(language)
        return self._drive(language, stage, state, Z, Y, 1.0)

    def momentum_rate(self, language: Language, stage: int, state: State) -> State:
        Y, Z = self._halves(language)
        return self._drive(language, stage, state, Y, Z, -1.0)
