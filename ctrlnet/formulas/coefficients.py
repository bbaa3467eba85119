"""How an operation's coefficients come from the controls of a stage."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

__all__ = ["Coefficients"]


@dataclass(frozen=True, eq=False)
class Coefficients:
    """How an operation's coefficients (J, C, C) come from the controls of a stage.

    ``constant`` if they do not; else ``left @ (mask * S)``, transposed in (out, in) before ``left`` if asked.
    """

    stage: int
    transpose: bool = False
    left: np.ndarray | None = None
    mask: np.ndarray | None = None
    constant: np.ndarray | None = None

    def __eq__(self, other: object) -> bool:
        """Whether they come in the same way; arrays are compared by their numbers."""
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(astuple(self), astuple(other), strict=True))

    __hash__ = None

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
