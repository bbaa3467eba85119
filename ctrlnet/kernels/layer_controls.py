"""The controls in time as arrays, the way sweeps take them and return derivatives with respect to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

__all__ = ["LayerControls"]


@dataclass(frozen=True)
class LayerControls:
    r"""Values of the controls at the times at which steps take them, or derivatives with respect to those values.

    A scheme may take its controls at several times in a step, its stages: the rows are the stages of the first step, of
    the second, and so on. They are a vector space: sums and multiples are those of all arrays.

    Parameters
    ----------
    coefficients
        :math:`s_j`, (rows, J, C, C), indexed ``[row, j, out, in]``.
    biases
        b, (rows, C).
    parameters
        What the dynamics learn beside them, (rows, P); P is 0 as a rule.
    """

    coefficients: np.ndarray
    biases: np.ndarray
    parameters: np.ndarray

    @classmethod
    def without_parameters(cls, coefficients: np.ndarray, biases: np.ndarray) -> LayerControls:
        """Return controls of dynamics that learn nothing else."""
        return cls(coefficients, biases, np.zeros((len(biases), 0)))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.coefficients, self.biases, self.parameters

    @property
    def in_time(self) -> LayerControls:
        """The controls that sweeps take, where these hold others besides."""
        return self

    def of(self, *arrays: np.ndarray) -> Self:
        """Return other values of the same controls."""
        return type(self)(*arrays)

    def zeros(self) -> Self:
        """Return the zero of the same shapes, in double precision."""
        return self.of(*(np.zeros(a.shape) for a in self.arrays))

    def rows(self, chosen: slice) -> LayerControls:
        """Return some of the rows, as views."""
        return LayerControls(*(a[chosen] for a in self.arrays))

    def at_step(self, k: int, stages: int = 1) -> LayerControls:
        """Return the rows of step k, as views."""
        return self.rows(slice(k * stages, (k + 1) * stages))

    def __add__(self, other: LayerControls) -> Self:
        return self.of(*(a + b for a, b in zip(self.arrays, other.arrays, strict=True)))

    def __mul__(self, number: float) -> Self:
        return self.of(*(number * a for a in self.arrays))

    __rmul__ = __mul__

    def add(self, other: LayerControls) -> None:
        """Add other values to these arrays, in place."""
        for total, part in zip(self.arrays, other.arrays, strict=True):
            total += part

    def write(self, other: LayerControls) -> None:
        """Overwrite these arrays, in place."""
        for target, source in zip(self.arrays, other.arrays, strict=True):
            target[:] = source
