r"""Losses of scores against targets: value, gradient and Hessian product.

Scores are arrays (K, columns), a column an image or a node of one; a loss knows nothing of meshes or of how columns are
split. A target is an array whose last index is the column: the number of a class, (columns,) integers, or numbers,
(K, columns). The sample average is the caller's: it passes each column's weight in the mean (0 where it is masked).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.special

__all__ = ["LeastSquares", "Logistic", "Loss", "SoftmaxCrossEntropy", "checked_loss", "image_hessians"]


Product = Callable[[np.ndarray], np.ndarray]


class Loss(Protocol):
    r"""The weighted sum :math:`\sum_i w_i\,\ell(c_i, y_i)` over columns, as a function of their scores.

    Everywhere scores are (K, columns), targets have the column as their last index, weights are (columns,).

    A loss of one's own is a subclass of this.
    """

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the sum."""

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each column's loss, (columns,); by default from :meth:`value`, column by column."""
        columns = range(scores.shape[1])
        one = np.ones(1)
        return np.array([self.value(scores[:, [k]], targets[..., [k]], one) for k in columns])

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, columns)."""

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, columns): block by block, a column a block."""

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return for every column whether its scores say what its target is, (columns,).

        Raises
        ------
        ValueError
            If the targets are numbers, which scores do not meet exactly.
        """

    def check(self, targets: np.ndarray) -> None:
        """Raise a ValueError if this loss does not take such targets; by default it takes all."""

    def expected(self, scores: np.ndarray) -> np.ndarray:
        """Return what scores (K, ...) say of the target: probabilities where they have any, by default themselves."""
        return scores

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probabilities (K, ...) that scores stand for. Raises a ValueError where they stand for none."""
        raise ValueError(f"The scores of {type(self).__name__} are no probabilities. Ask for scores.")


def checked_loss(loss: Any) -> Loss:
    """Return what is a loss; of anything else raise a ValueError."""
    if isinstance(loss, type) or not all(hasattr(loss, name) for name in ("value", "gradient", "hessian_at", "check")):
        raise ValueError(
            f"A loss is SoftmaxCrossEntropy(), LeastSquares(), Logistic() or a subclass of ctrlnet.objective.Loss, "
            f"received {loss!r}.")
    return loss


def _are_classes(targets: np.ndarray) -> bool:
    return targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)


def _largest_is_the_class(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if not _are_classes(targets):
        raise ValueError(
            "Numbers are hardly ever met exactly, so there is no share of right ones: received targets of shape "
            f"{targets.shape} and type {targets.dtype}. Ask for the relative error.")
    return scores.argmax(axis=0) == targets


def _shifted_exponentials(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each column's largest score m, exp(c - m) and its sum over classes: no score overflows."""
    largest = scores.max(axis=0)
    powers = np.exp(scores - largest)
    return largest, powers, powers.sum(axis=0)


def _as_numbers(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return targets as numbers (K, columns): a class as its unit vector."""
    if not _are_classes(targets):
        return targets
    out = np.zeros_like(scores)
    out[targets, np.arange(targets.size)] = 1.0
    return out


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    r"""Cross-entropy of the softmax, :math:`\ell(c, y) = \log\sum_k e^{c_k} - c_y`, stable for large scores.

    Its gradient is :math:`p - e_y`, its Hessian :math:`\mathrm{diag}(p) - pp^T` with p the softmax of c.
    """

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        return float(weights @ self.values(scores, targets))

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each column's loss."""
        largest, _, total = _shifted_exponentials(scores)
        return np.log(total) + largest - scores[targets, np.arange(targets.size)]

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, columns)."""
        out = self.probabilities(scores)
        out[targets, np.arange(targets.size)] -= 1.0
        return weights * out

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, columns)."""
        return self.hessian_at(scores, targets, weights)(direction)

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        p = self.probabilities(scores)
        weighted = weights * p

        def product(direction: np.ndarray) -> np.ndarray:
            return weighted * (direction - (p * direction).sum(axis=0))

        return product

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return whether each column's largest score is that of its class."""
        return _largest_is_the_class(scores, targets)

    def check(self, targets: np.ndarray) -> None:
        if not _are_classes(targets):
            raise ValueError(
                "SoftmaxCrossEntropy takes classes, integers; received targets of shape "
                f"{targets.shape} and type {targets.dtype}. For numbers take loss=LeastSquares(), or Logistic() for "
                "several answers of yes or no.")

    def expected(self, scores: np.ndarray) -> np.ndarray:
        return self.probabilities(scores)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the softmax of the scores."""
        _, powers, total = _shifted_exponentials(scores)
        return powers / total


@dataclass(frozen=True)
class LeastSquares(Loss):
    r"""Half squared distance, :math:`\ell(c, y) = \frac12 |c - y|^2`; of a class y, to its unit vector :math:`e_y`."""

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        return float(weights @ self.values(scores, targets))

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each column's loss."""
        return 0.5 * ((scores - _as_numbers(scores, targets)) ** 2).sum(axis=0)

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, columns)."""
        return weights * (scores - _as_numbers(scores, targets))

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, columns)."""
        return weights * direction

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        return lambda direction: weights * direction

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return whether each column's largest score is that of its class."""
        return _largest_is_the_class(scores, targets)


@dataclass(frozen=True)
class Logistic(Loss):
    r"""The logistic loss of K answers y in [0, 1], independent of each other: :math:`\sum_k \log(1+e^{c_k}) - y_k c_k`.

    With K = 1 that is logistic regression; with more, several labels may hold for one column. Targets are numbers
    (K, columns). Its gradient is p - y, its Hessian diag(p (1 - p)), with :math:`p_k = 1 / (1 + e^{-c_k})`.
    """

    def value(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
        """Return the weighted sum of the losses."""
        return float(weights @ self.values(scores, targets))

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each column's loss."""
        return (np.logaddexp(0.0, scores) - targets * scores).sum(axis=0)

    def gradient(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the derivative with respect to the scores (K, columns)."""
        return weights * (self.probabilities(scores) - targets)

    def hessian(
        self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """Return the Hessian times a direction of scores (K, columns)."""
        return self.hessian_at(scores, targets, weights)(direction)

    def hessian_at(self, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Product:
        """Return the map from directions to their products, for many of them at the same scores."""
        p = self.probabilities(scores)
        curvature = weights * p * (1.0 - p)
        return lambda direction: curvature * direction

    def agrees(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return whether all of a column's answers are right: a score is positive where the target is above 1/2."""
        return ((scores > 0) == (targets > 0.5)).all(axis=0)

    def check(self, targets: np.ndarray) -> None:
        if targets.ndim != 2 or not ((targets >= 0) & (targets <= 1)).all():
            raise ValueError(
                f"Logistic takes numbers from 0 to 1, received targets of shape {targets.shape}"
                + (f" between {targets.min():g} and {targets.max():g}" if targets.size else "")
                + ". Give them as Numbers, 1 for yes and 0 for no; classes take SoftmaxCrossEntropy().")

    def expected(self, scores: np.ndarray) -> np.ndarray:
        return self.probabilities(scores)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of each answer."""
        return scipy.special.expit(scores)


def image_hessians(loss: Loss, scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted Hessian of each column's loss in its scores, (columns, K, K)."""
    out = np.empty((scores.shape[1], scores.shape[0], scores.shape[0]))
    product = loss.hessian_at(scores, targets, weights)
    for k in range(scores.shape[0]):
        unit = np.zeros_like(scores)
        unit[k] = 1.0
        out[:, :, k] = product(unit).T
    return out
