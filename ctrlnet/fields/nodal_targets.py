"""Targets at the nodes of a mesh: a class at every node, or a field of numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from firedrake import Function
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.fields.nodal_transfer import NodalTransfer, nearest_nodes, values_of_functions
from ctrlnet.fields.stores import Rows
from ctrlnet.fields.targets import ImageTargets, check_count, checked_class_count, checked_class_weights

__all__ = ["NodalClasses", "NodalFields"]


class _AtNodes:
    """Rows of values at the nodes that this rank owns of a space, with a mask.

    Parameters
    ----------
    V
        Scalar space.
    values
        (n, ..., owned nodes).
    mask
        (n, owned nodes), true where the values count.
    """

    def __init__(self, V: WithGeometry, values: Any, mask: Any, what: str):
        self.V = V
        self._values = Rows(values, what)
        self._mask = None if mask is None else Rows(mask, "masks")
        owned = V.dof_dset.size
        if self._values.shape[-1] != owned or len(self._values) == 0:
            raise ValueError(
                f"{what.capitalize()} are given at the {owned} nodes that this rank owns, received shape "
                f"{self._values.shape}. The nodes are those of Function(V).dat.data_ro.")
        if self._mask is not None and (self._mask.shape != (len(self._values), owned) or self._mask.dtype != bool):
            raise ValueError(
                f"A mask is boolean, one entry an image and node: ({len(self._values)}, {owned}); received "
                f"{self._mask.dtype} of shape {self._mask.shape}.")

    def __len__(self) -> int:
        return len(self._values)

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out._values = self._values.chosen(numbers)
        out._mask = None if self._mask is None else self._mask.chosen(numbers)
        return out

    def of_images(self) -> ImageTargets:
        raise ValueError(
            "These are targets at nodes, one for every node of an image: they take a NodalReadout. For a Readout give "
            "Classes or Numbers.")

    def at_nodes(self, V: WithGeometry) -> Self:
        if V != self.V:
            raise ValueError(
                f"The targets are given at the nodes of {self.V}, the network has those of {V}. Take targets.on(V) to "
                "bring them to another mesh of the hierarchy.")
        return self

    def check_draw(self, count: int) -> None:
        check_count(count, len(self))

    def _counting(self, start: int, stop: int) -> np.ndarray | None:
        """Return which values count, (n, owned); None for all."""
        return None if self._mask is None else self._mask.read(start, stop)


class NodalClasses(_AtNodes):
    r"""A class at every node, in the mean :math:`\int m\,\ell(c, y)\,dx / \int m\,dx` of each image.

    Parameters
    ----------
    V
        Scalar space of the nodes.
    labels
        (n, owned nodes) integers, 0 to ``classes - 1``; also a memory map or a dataset of h5py.
    classes
        K.
    weights
        (K,), positive: how much a node of each class counts in m. Default: all alike.
    mask
        (n, owned nodes), true where a label counts; labels that do not may be anything.

    Raises
    ------
    ValueError
        For labels of another shape or type, or other weights or masks; for labels out of range, at once where they are
        in memory and else when they are read.
    """

    are_classes = True

    def __init__(self, V: WithGeometry, labels: Any, classes: int, weights: Any = None, mask: Any = None):
        super().__init__(V, labels, mask, "labels at nodes")
        if self._values.dtype.kind not in "iu" or len(self._values.shape) != 2:
            raise ValueError(
                f"Labels at nodes are integers, (n, owned nodes); received {self._values.dtype} of shape "
                f"{self._values.shape}.")
        self.components = checked_class_count(classes)
        self.class_weights = checked_class_weights(weights, self.components)
        if self._values.in_memory:
            self.values(0, len(self))

    def values(self, start: int, stop: int) -> np.ndarray:
        labels, counting = self._values.read(start, stop), self._counting(start, stop)
        if counting is not None:
            labels = np.where(counting, labels, 0)
        if labels.size and not 0 <= labels.min() <= labels.max() < self.components:
            raise ValueError(
                f"Labels at nodes must lie in 0 to {self.components - 1}, received {labels.min()} to {labels.max()}. "
                "Mask the nodes that have none, or give classes=.")
        return np.ascontiguousarray(labels.T, dtype=np.int64)

    def density(self, start: int, stop: int) -> np.ndarray:
        weights, counting = self.class_weights[self.values(start, stop)], self._counting(start, stop)
        return weights if counting is None else weights * counting.T

    def normaliser(self, start: int, stop: int) -> np.ndarray:
        return self.density(start, stop)

    def on(self, V: WithGeometry) -> NodalClasses:
        """Return the targets at the nodes of another mesh: each takes the label and mask of the nearest node here.

        They are read as a whole.
        """
        nearest = nearest_nodes(self.V, V)
        mask = None if self._mask is None else nearest(self._mask.read())
        return NodalClasses(V, nearest(self._values.read()), self.components, self.class_weights, mask)


class NodalFields(_AtNodes):
    r"""A field of p components, in :math:`\int m\,\ell(c, y)\,dx`, or relative, over :math:`\int m\,|y|^2\,dx`.

    Parameters
    ----------
    V
        Scalar space of the nodes.
    values
        (n, p, owned nodes), or (n, owned nodes) for p = 1; also a memory map or a dataset of h5py.
    relative
        Whether the loss of an image is divided by the square of its target's norm.
    mask
        (n, owned nodes), true where a value counts; those that do not may be NaN.

    Raises
    ------
    ValueError
        For values of another shape, other masks, or values that are not finite: at once where they are in memory and
        else when they are read.
    """

    are_classes = False

    def __init__(self, V: WithGeometry, values: Any, relative: bool = False, mask: Any = None):
        super().__init__(V, values, mask, "fields at nodes")
        if len(self._values.shape) not in (2, 3):
            raise ValueError(f"Fields at nodes are (n, p, owned nodes), received shape {self._values.shape}.")
        self.components = 1 if len(self._values.shape) == 2 else self._values.shape[1]
        self.relative = bool(relative)
        if self._values.in_memory:
            self.values(0, len(self))

    @classmethod
    def of_functions(
        cls, functions: Sequence[Function], relative: bool = False, mask: Any = None
    ) -> NodalFields:
        """Return the targets that are Functions of one space, scalar or of p components."""
        return cls(*values_of_functions(functions), relative, mask)

    def values(self, start: int, stop: int) -> np.ndarray:
        found, counting = self._values.read(start, stop), self._counting(start, stop)
        found = found.astype(float).reshape(len(found), self.components, -1)
        if counting is not None:
            found = np.where(counting[:, None], found, 0.0)
        self._values.check_finite(found, start)
        return np.ascontiguousarray(np.moveaxis(found, 0, 2))

    def density(self, start: int, stop: int) -> np.ndarray:
        counting = self._counting(start, stop)
        count = min(stop, len(self)) - start
        return np.ones((self.V.dof_dset.size, count)) if counting is None else counting.T.astype(float)

    def normaliser(self, start: int, stop: int) -> np.ndarray | None:
        if not self.relative:
            return None
        return self.density(start, stop) * (self.values(start, stop) ** 2).sum(axis=0)

    def on(self, V: WithGeometry) -> NodalFields:
        """Return the fields on another mesh of the hierarchy: interpolated to a finer one, restricted to a coarser one.

        Masks are those of the nearest node. They are read as a whole.
        """
        moved = NodalTransfer(self.V, V).apply(np.moveaxis(self.values(0, len(self)), 2, 0))
        mask = None if self._mask is None else nearest_nodes(self.V, V)(self._mask.read())
        return NodalFields(V, np.moveaxis(moved, 2, 0).swapaxes(1, 2), self.relative, mask)
