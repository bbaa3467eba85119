r"""The classifier (W, beta) as controls: what all readouts share."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import numpy as np

from ctrlnet.controls import Controls, ControlSet, ControlsLike, Part, ReplicatedPart, numbers_space
from ctrlnet.errors import NotPickled, finite
from ctrlnet.fields.sample import Sample
from ctrlnet.network.network import Network
from ctrlnet.objective.point import Point

__all__ = ["ReadoutControls", "check_regularisation", "checked_classes"]


class ReadoutControls(NotPickled):
    r"""Weights W (features, K) and biases beta (K,) of scores :math:`W^T F + \beta`, as controls and as arrays.

    Parameters
    ----------
    network
        Gives C.
    classes
        K, at least 1.
    weights
        The control W: C*K components in each of its rows, the C-order flattening of ``W[c, k]``.

    Attributes
    ----------
    bias_space
        Space of beta: K numbers, each rank its own copy.
    control_set : ControlSet
        The controls ``W`` and ``beta``.
    nodes
        Number of rows of W.
    """

    def __init__(self, network: Network, classes: int, weights: Part):
        self.network, self.classes, self.comm = network, classes, network.comm
        self.weights_space = weights.space
        self.bias_space = numbers_space(classes)
        self.control_set = ControlSet([weights, ReplicatedPart("beta", self.bias_space)])
        self.nodes = weights.rows

    @property
    def features(self) -> int:
        """Number of features of a column."""
        return self.nodes * self.network.features

    def zero(self) -> Controls:
        """Return the classifier (W, beta) that is zero."""
        return self.control_set.zero()

    def arrays(self, m: ControlsLike) -> tuple[np.ndarray, np.ndarray]:
        """Return a classifier as W (features, K), in the global numbering of nodes, and beta (K,), on every rank."""
        return self.arrays_of(self.control_set.arrays(m))

    def arrays_of(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`arrays` of degrees of freedom by name; those of other controls are left out."""
        return arrays["W"].reshape(self.features, self.classes), arrays["beta"].ravel()

    def by_name(self, W: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
        """Return W (features, K) and beta (K,), or derivatives with respect to them, as arrays of degrees of freedom.

        The inverse of :meth:`arrays_of`.
        """
        return {"W": W.reshape(self.nodes, -1), "beta": beta.reshape(1, -1)}

    def point(self, m: ControlsLike) -> Point:
        """Return all controls, those of the network and the classifier, as arrays of their own."""
        control_set = self.network.control_set + self.control_set
        arrays = {name: values.copy() for name, values in control_set.arrays(m).items()}
        return Point(self.network.layers_of(arrays), *self.arrays_of(arrays))

    def classifier(self, W: np.ndarray, beta: np.ndarray) -> Controls:
        """Return the classifier of arrays W (features, K) and beta (K,)."""
        return self.control_set.functions(self.by_name(W, beta))

    def check(self, sample: Sample) -> None:
        """Raise a ValueError if a sample has no targets, or targets of other components than this readout's scores."""
        if sample.targets is None:
            raise ValueError(
                "The sample has no targets, so there is nothing to compare scores with. Give targets= (labels, for "
                "example), or ask for predictions alone.")
        if sample.targets.components != self.classes:
            raise ValueError(
                f"The sample has {sample.targets.components} classes or components, the readout {self.classes}; they "
                "must agree.")


def checked_classes(classes: int) -> int:
    """Return the number of classes or components, if it is one."""
    if not isinstance(classes, Integral) or classes < 1:
        raise ValueError(
            f"A readout needs a whole number of classes or components, at least one; received {classes!r}.")
    return int(classes)


def check_regularisation(gradient: float, size: float) -> None:
    """Raise a ValueError if a weight of the classifier's regularisation is negative or not finite."""
    if not (finite(gradient, size) and min(gradient, size) >= 0):
        raise ValueError(
            f"Regularisation weights must not be negative, and finite; received gradient={gradient!r}, size={size!r}.")
