"""All controls of a training problem as arrays, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctrlnet.kernels.layer_controls import LayerControls

__all__ = ["Point"]


@dataclass(frozen=True)
class Point:
    r"""Values of all controls :math:`(s, b, W, \beta)`, a direction in their space, or a derivative in its dual.

    Points are a vector space: sums and multiples are those of all arrays.

    Parameters
    ----------
    layers
        The controls in time, at the times at which steps take them.
    W
        The readout's weights, (features, K).
    beta
        Its biases, (K,).
    """

    layers: LayerControls
    W: np.ndarray
    beta: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Coefficients, biases, learned parameters, W and beta."""
        return *self.layers.arrays, self.W, self.beta

    def __iter__(self) -> Iterator[LayerControls | np.ndarray]:
        """Go over controls in time, W and beta, the arguments of a mean's scores."""
        return iter((self.layers, self.W, self.beta))

    @classmethod
    def in_layers(cls, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> Point:
        """Return a direction of the controls in time alone; W and beta give the shapes of the zeros."""
        return cls(layers, np.zeros(W.shape), np.zeros(beta.shape))

    def zeros(self) -> Point:
        """Return the zero of the same shapes, in double precision."""
        return Point(self.layers.zeros(), np.zeros(self.W.shape), np.zeros(self.beta.shape))

    def __add__(self, other: Point) -> Point:
        return Point(self.layers + other.layers, self.W + other.W, self.beta + other.beta)

    def __mul__(self, number: float) -> Point:
        return Point(number * self.layers, number * self.W, number * self.beta)

    __rmul__ = __mul__

    def dot(self, other: Point) -> float:
        """Return the sum of the products of all entries: a derivative's pairing with a direction."""
        return sum(float((a * b).sum()) for a, b in zip(self.arrays, other.arrays, strict=True))
