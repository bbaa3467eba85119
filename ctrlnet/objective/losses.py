r"""Losses of one image's scores against its target: value, gradient and Hessian product.

Scores are arrays (K, images); a loss knows nothing of meshes or of how images are split. What a target is, is between
the loss and the sample: an array whose last index is the image, here the number of a class. The sample average is the
caller's: it passes each image's weight (1/n, or 0 for padding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["LeastSquares", "Loss", "SoftmaxCrossEntropy", "image_hessians"]


Product = Callable[[np.ndarray], np.ndarray]


class Loss(Protocol):
    r"""The weighted sum :math:`\sum_i w_i\,\ell(c_i, y_i)` over images, as a function of their scores.

    Everywhere scores are (K, images), targets have the image as their last index, weights are (images,).
    """

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the sum."""

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, images)."""

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, images): block by block, an image a block."""

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return for every image whether its scores say what its target is, (images,)."""


def _largest_is_the_class(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return scores.argmax(axis=0) == targets


def _shifted_exponentials(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each image's largest score m, exp(c - m) and its sum over classes: no score overflows."""
    largest = scores.max(axis=0)
    powers = np.exp(scores - largest)
    return largest, powers, powers.sum(axis=0)


def _one_hot(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    out = np.zeros_like(scores)
    out[targets, np.arange(targets.size)] = 1.0
    return out


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    r"""Cross-entropy of the softmax, :math:`\ell(c, y) = \log\sum_k e^{c_k} - c_y`, stable for large scores.

    Its gradient is :math:`p - e_y`, its Hessian :math:`\mathrm{diag}(p) - pp^T` with p the softmax of c.
    """

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        largest, _, total = _shifted_exponentials(scores)
        return float(weights @ (np.log(total) + largest - scores[targets, np.arange(targets.size)]))

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, images)."""
        out = self.probabilities(scores)
        out[targets, np.arange(targets.size)] -= 1.0
        return weights * out

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, images)."""
        return self.hessian_at(scores, targets, weights)(direction)

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        p = self.probabilities(scores)
        weighted = weights * p

        def product(direction: np.ndarray) -> np.ndarray:
            return weighted * (direction - (p * direction).sum(axis=0))

        return product

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return whether each image's largest score is that of its class."""
        return _largest_is_the_class(scores, targets)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the softmax of the scores."""
        _, powers, total = _shifted_exponentials(scores)
        return powers / total


@dataclass(frozen=True)
class LeastSquares:
    r"""Half squared distance to the unit vector of the class, :math:`\ell(c, y) = \frac12 |c - e_y|^2`."""

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        return float(0.5 * weights @ ((scores - _one_hot(scores, targets)) ** 2).sum(axis=0))

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, images)."""
        return weights * (scores - _one_hot(scores, targets))

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, images)."""
        return weights * direction

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        return lambda direction: weights * direction

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return whether each image's largest score is that of its class."""
        return _largest_is_the_class(scores, targets)


def image_hessians(loss: Loss, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Hessian of each image's loss in its scores, (images, K, K)."""
    out = np.empty((scores.shape[1], scores.shape[0], scores.shape[0]))
    product = loss.hessian_at(scores, targets, weights)
    for k in range(scores.shape[0]):
        unit = np.zeros_like(scores)
        unit[k] = 1.0
        out[:, :, k] = product(unit).T
    return out
