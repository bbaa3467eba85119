r"""Losses of one image's scores against its class: value, gradient and Hessian product.

Scores are arrays (K classes, images); a loss knows nothing of meshes or of how images are split. The
sample average is the caller's: it passes each image's weight (1/n, or 0 for padding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["LeastSquares", "Loss", "SoftmaxCrossEntropy", "image_hessians"]


Product = Callable[[np.ndarray], np.ndarray]


class Loss(Protocol):
    """What the sample average needs of a loss."""

    def value(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float: ...

    def gradient(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray: ...

    def hessian(
        self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray: ...

    def hessian_at(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Product: ...


def _shifted_exponentials(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each image's largest score m, exp(c - m) and its sum over classes: no score overflows."""
    largest = scores.max(axis=0)
    powers = np.exp(scores - largest)
    return largest, powers, powers.sum(axis=0)


def _one_hot(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out = np.zeros_like(scores)
    out[labels, np.arange(labels.size)] = 1.0
    return out


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    r"""Cross-entropy of the softmax, :math:`\ell(c, y) = \log\sum_k e^{c_k} - c_y`, stable for large scores.

    Its gradient is :math:`p - e_y`, its Hessian :math:`\mathrm{diag}(p) - pp^T` with p the softmax of c.
    """

    def value(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        largest, _, total = _shifted_exponentials(scores)
        return float(weights @ (np.log(total) + largest - scores[labels, np.arange(labels.size)]))

    def gradient(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, images)."""
        out = self.probabilities(scores)
        out[labels, np.arange(labels.size)] -= 1.0
        return weights * out

    def hessian(
        self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, images)."""
        return self.hessian_at(scores, labels, weights)(direction)

    def hessian_at(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        p = self.probabilities(scores)
        weighted = weights * p

        def product(direction: np.ndarray) -> np.ndarray:
            return weighted * (direction - (p * direction).sum(axis=0))

        return product

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the softmax of the scores."""
        _, powers, total = _shifted_exponentials(scores)
        return powers / total


@dataclass(frozen=True)
class LeastSquares:
    r"""Half squared distance to the unit vector of the class, :math:`\ell(c, y) = \frac12 |c - e_y|^2`."""

    def value(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        return float(0.5 * weights @ ((scores - _one_hot(scores, labels)) ** 2).sum(axis=0))

    def gradient(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, images)."""
        return weights * (scores - _one_hot(scores, labels))

    def hessian(
        self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, images)."""
        return weights * direction

    def hessian_at(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        return lambda direction: weights * direction


def image_hessians(loss: Loss, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Hessian of each image's loss in its scores, (images, K, K)."""
    out = np.empty((scores.shape[1], scores.shape[0], scores.shape[0]))
    product = loss.hessian_at(scores, labels, weights)
    for k in range(scores.shape[0]):
        unit = np.zeros_like(scores)
        unit[k] = 1.0
        out[:, :, k] = product(unit).T
    return out
