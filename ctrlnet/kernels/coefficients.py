"""What a program needs besides its operations: how coefficients come from controls, and the rows of one mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.kernels.primitives import OperatorRows, Primitives

__all__ = ["Coefficients", "OnMesh"]


@dataclass(frozen=True)
class Coefficients:
    """How an operation's coefficients (J, C, C) come from the controls of a stage.

    ``constant`` if they do not; else ``left @ (mask * S)``, transposed in (out, in) before ``left`` if asked.
    """

    stage: int
    transpose: bool = False
    left: np.ndarray | None = None
    mask: np.ndarray | None = None
    constant: np.ndarray | None = None

    def of(self, S: np.ndarray) -> np.ndarray:
        """Return the coefficients at the step's controls S (stages, J, C, C); linear unless constant."""
        if self.constant is not None:
            return self.constant
        S = S[self.stage] if self.mask is None else S[self.stage] * self.mask
        S = np.swapaxes(S, -1, -2) if self.transpose else S
        return S if self.left is None else self.left @ S

    def pull(self, g: np.ndarray) -> np.ndarray:
        """Return the transpose of the map S[stage] -> coefficients applied to g."""
        g = g if self.left is None else self.left.T @ g
        g = np.swapaxes(g, -1, -2) if self.transpose else g
        return g if self.mask is None else g * self.mask


@dataclass
class OnMesh:
    """What a program needs of one mesh: rows of its sets of operators, each with its halo, and the kernels."""

    rows: dict[str, OperatorRows]
    primitives: Primitives
    owned: int
    nodes: int
