"""Targets of a sample: what scores are compared with, and the two kinds of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, Self

import numpy as np
from firedrake.functionspaceimpl import WithGeometry

__all__ = ["Classes", "ImageTargets", "NodalTargets", "Numbers", "Targets", "checked_class_count",
           "checked_class_weights"]


@dataclass(frozen=True)
class ImageTargets:
    r"""Targets of whole images, with the weights of :math:`J = \frac1n\sum_i w_i\, \ell(c_i, y_i)`.

    Parameters
    ----------
    values
        The image is the last index: classes (n,), integers, or numbers (p, n).
    weights
        w, (n,).
    """

    values: np.ndarray
    weights: np.ndarray


class NodalTargets(Protocol):
    r"""Targets at the nodes that this rank owns, in

    .. math:: J = \frac1n \sum_i \frac{1}{N_i} \int m_i(x)\, \ell(c_i(x), y_i(x))\,dx,

    with a density m, which is the mask times the weights of classes, and :math:`N_i` the integral of a normaliser.
    """

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return y of images ``start`` to ``stop``: classes (owned, n), integers, or numbers (p, owned, n).

        Masked ones are 0.
        """

    def density(self, start: int, stop: int) -> np.ndarray:
        """Return m, (owned, n)."""

    def normaliser(self, start: int, stop: int) -> np.ndarray | None:
        """Return the density (owned, n) whose integral is N; None where N is 1."""


class Targets(Protocol):
    """Targets of n images.

    Attributes
    ----------
    components
        K, the scores that a readout has to give: classes, or components of a vector or field.
    are_classes
        Whether scores decide on a class; else they stand for numbers.
    """

    components: int
    are_classes: bool

    def __len__(self) -> int: ...

    def chosen(self, numbers: np.ndarray) -> Targets:
        """Return the targets of the images of the given numbers, in their order."""

    def of_images(self) -> ImageTargets:
        """Return targets of whole images. Raises a ValueError where every node has one of its own."""

    def at_nodes(self, V: WithGeometry) -> NodalTargets:
        """Return targets at the nodes of V. Raises a ValueError where there are none, or at those of another space."""

    def check_draw(self, count: int) -> None:
        """Raise a ValueError if some images, drawn from these, cannot be expected to show all that is to be learned."""


def checked_class_weights(weights: Any, classes: int) -> np.ndarray:
    """Return the weights of classes; one each by default.

    Raises
    ------
    ValueError
        If there are not as many positive numbers as classes.
    """
    w = np.ones(classes) if weights is None else np.asarray(weights, dtype=float)
    if w.shape != (classes,) or not (np.isfinite(w).all() and (w > 0).all()):
        raise ValueError(f"{classes} classes need as many positive weights, received {weights!r}.")
    return w


def checked_class_count(classes: int) -> int:
    """Return the number of classes, if it is one."""
    if not isinstance(classes, Integral) or classes < 1:
        raise ValueError(f"There is a whole number of classes, at least one; received classes={classes!r}.")
    return int(classes)


class _OfImages:
    """One target an image."""

    def at_nodes(self, V: WithGeometry) -> NodalTargets:
        raise ValueError(
            "These are targets of whole images, not of nodes: they take a Readout. For a NodalReadout give "
            "NodalClasses or NodalFields.")


class Classes(_OfImages):
    r"""One class an image, with the weights :math:`w_i = \omega_{y_i} n / \sum_k \omega_{y_k}`.

    Parameters
    ----------
    labels
        (n,) integers, 0 to ``classes - 1``.
    classes
        K.
    weights
        omega, (K,), positive: how much an image of each class counts. Default: all alike.

    Raises
    ------
    ValueError
        For labels of another shape, type or range, or other weights.
    """

    are_classes = True

    def __init__(self, labels: Any, classes: int, weights: Any = None):
        labels = np.asarray(labels)
        if labels.ndim != 1:
            raise ValueError(f"Labels are one number an image, received labels of shape {labels.shape}.")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"Labels must be integers, received {labels.dtype}.")
        classes = checked_class_count(classes)
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise ValueError(
                f"Labels must lie in 0 to {classes - 1}, received {labels.min()} to {labels.max()}. "
                "Check the labels, or give classes=.")
        self.labels, self.components = labels.astype(np.int64), classes
        self.class_weights = checked_class_weights(weights, self.components)

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out.labels = self.labels[numbers]
        return out

    def of_images(self) -> ImageTargets:
        w = self.class_weights[self.labels]
        return ImageTargets(self.labels, w / w.mean())

    def check_draw(self, count: int) -> None:
        if not self.components <= count <= len(self):
            raise ValueError(
                f"The first drawn sample must hold {self.components} images (one a class) to {len(self)} (all of "
                f"them), received {count}. Change first=, or give more data.")
        missing = np.flatnonzero(np.bincount(self.labels, minlength=self.components) == 0)
        if missing.size:
            raise ValueError(
                f"The sample has no image of class {', '.join(map(str, missing))}; every drawn sample needs one of "
                "each class. Add images, or number the classes without gaps.")


class Numbers(_OfImages):
    r"""A vector of p numbers an image; relative, with the weights :math:`1/|y_i|^2`.

    Numbers from 0 to 1 serve as the answers of :class:`~ctrlnet.objective.Logistic`.

    Parameters
    ----------
    values
        (n, p), or (n,) for p = 1.
    relative
        Whether the loss of an image is divided by :math:`|y_i|^2`.

    Raises
    ------
    ValueError
        If they have another shape, are not finite, or one is zero that an error is to be relative to.
    """

    are_classes = False

    def __init__(self, values: Any, relative: bool = False):
        y = np.asarray(values)
        if y.dtype.kind not in "biuf" or y.ndim not in (1, 2) or 0 in y.shape:
            raise ValueError(f"Numbers are an array (n, p), received {y.dtype} of shape {y.shape}.")
        y = y.astype(float).reshape(len(y), -1)
        bad = ~np.isfinite(y).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {bad.size} targets hold NaN or infinite numbers, the first is number "
                f"{int(np.argmax(bad))}. Remove or repair them.")
        size = (y**2).sum(axis=1)
        if relative and not size.all():
            raise ValueError(
                f"Target {int(np.argmin(size))} is zero, and no error is relative to it. Leave it out, or take "
                "absolute errors.")
        self._values, self._weights = y, 1.0 / size if relative else np.ones(len(y))
        self.components = y.shape[1]

    def __len__(self) -> int:
        return len(self._values)

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out._values, out._weights = self._values[numbers], self._weights[numbers]
        return out

    def of_images(self) -> ImageTargets:
        return ImageTargets(np.ascontiguousarray(self._values.T), self._weights)

    def check_draw(self, count: int) -> None:
        check_count(count, len(self))


def check_count(count: int, total: int) -> None:
    """Raise a ValueError if so many images cannot be drawn."""
    if not 1 <= count <= total:
        raise ValueError(f"Cannot draw {count} images from a sample of {total}; ask for 1 to {total}.")
