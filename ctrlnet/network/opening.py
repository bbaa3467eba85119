r"""The opening of a network: :math:`Y(0) = O x`, from q channels of an input to C features.

O is a C x q matrix that acts at every node alike, so that it belongs to no mesh. It is fixed, or a control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ctrlnet.controls import Controls, ControlSet, ReplicatedPart, numbers_space
from ctrlnet.kernels.layer_controls import LayerControls

__all__ = ["FixedOpening", "LearnedOpening", "OpenedControls", "Opening"]


class Opening(Protocol):
    """The map from inputs to initial states, with its derivatives.

    Nodal values x are (owned, q, images), states (owned, C, images or more); what is beyond the images is set to zero.
    ``layers`` are a network's controls as :meth:`ctrlnet.Network.layers` gives them, or a direction of theirs.

    Attributes
    ----------
    features, channels
        C and q.
    control_set
        What it learns; empty for one that is fixed.
    start
        O, (C, q), with which a training starts.
    """

    features: int
    channels: int
    control_set: ControlSet
    start: np.ndarray

    def first(self) -> Controls:
        """Return what it learns at its start; nothing for one that is fixed."""

    def joined(self, in_time: LayerControls, arrays: Mapping[str, np.ndarray]) -> LayerControls:
        """Return the controls in time together with what of O is learned, from degrees of freedom by name."""

    def derivatives(self, derivative: LayerControls) -> dict[str, np.ndarray]:
        """Return the derivatives in :attr:`control_set` of a derivative in joined controls, by name."""

    def open(self, layers: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        """Write Y(0) = O x."""

    def open_tangent(self, direction: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        r"""Write :math:`\dot Y(0) = \dot O x`."""

    def pull(self, lam: np.ndarray, x: np.ndarray, total: LayerControls) -> None:
        r"""Add :math:`\sum_i \lambda_i(0)\, x_i^T`, summed over this rank's nodes, to a derivative."""

    def pull_each(self, lam: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the arrays that :meth:`pull` adds to, of each image by itself: (C, q, images)."""


def _checked(matrix: np.ndarray, what: str) -> np.ndarray:
    found = np.asarray(matrix, dtype=float)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or 0 in found.shape or not np.isfinite(found).all():
        raise ValueError(
            f"{what} is a finite matrix of features x channels, (C, q), or (C,) for one channel; received shape "
            f"{np.shape(matrix)}.")
    return found


def _first_features(features: int, channels: int) -> np.ndarray:
    if not 1 <= channels <= features:
        raise ValueError(
            f"The first features are the channels by default: {features} features have room for 1 to {features} "
            f"channels, received {channels!r}. Take more features, or give a matrix (features, channels).")
    return np.eye(features, channels)


def _applied(matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    images, matrix = x.shape[-1], matrix.astype(out.dtype)
    part = out[:, :, :images]
    np.multiply(matrix[:, 0, None], x[:, 0, None, :], out=part, casting="same_kind")
    for channel in range(1, x.shape[1]):
        part += matrix[:, channel, None] * x[:, channel, None, :]
    out[:, :, images:] = 0.0


class FixedOpening:
    """An opening that is given.

    Parameters
    ----------
    matrix
        O, (C, q), or (C,) for one channel.

    Raises
    ------
    ValueError
        If it is no finite matrix.
    """

    control_set = ControlSet([])

    def __init__(self, matrix: np.ndarray):
        self.start = _checked(matrix, "A fixed opening")
        self.features, self.channels = self.start.shape

    @classmethod
    def of_channels(cls, features: int, channels: int = 1) -> FixedOpening:
        """Return the opening by which the first features are the channels and the others zero."""
        return cls(_first_features(features, channels))

    def first(self) -> Controls:
        return self.control_set.zero()

    def joined(self, in_time: LayerControls, arrays: Mapping[str, np.ndarray]) -> LayerControls:
        return in_time

    def derivatives(self, derivative: LayerControls) -> dict[str, np.ndarray]:
        return {}

    def open(self, layers: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        _applied(self.start, x, out)

    def open_tangent(self, direction: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        out[:] = 0.0

    def pull(self, lam: np.ndarray, x: np.ndarray, total: LayerControls) -> None:
        pass

    def pull_each(self, lam: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return ()


@dataclass(frozen=True)
class OpenedControls(LayerControls):
    """The controls in time with a learned opening.

    Parameters
    ----------
    coefficients, biases, parameters
        See :class:`~ctrlnet.kernels.layer_controls.LayerControls`.
    opening
        O, (C, q).
    """

    opening: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return *super().arrays, self.opening

    @property
    def in_time(self) -> LayerControls:
        return LayerControls(self.coefficients, self.biases, self.parameters)


class LearnedOpening:
    r"""An opening that is a control, ``O``: C*q numbers, the C-order flattening of ``O[c, j]``.

    Its inner product is the Euclidean one, and its regularisation :math:`\frac{\kappa}{2}|O|^2` (``opening_size`` of a
    :class:`~ctrlnet.TrainingProblem`).

    Parameters
    ----------
    features, channels
        C and q.
    start
        O before any training, (C, q). Default: the first features are the channels.

    Raises
    ------
    ValueError
        If there is no room for the channels by default, or the start has another shape.
    """

    def __init__(self, features: int, channels: int, start: np.ndarray | None = None):
        self.start = _first_features(features, channels) if start is None else _checked(start, "An opening's start")
        if self.start.shape != (features, channels):
            raise ValueError(
                f"The start of an opening of {features} features and {channels} channels has shape "
                f"({features}, {channels}); received {np.shape(start)}.")
        self.features, self.channels = features, channels
        self.control_set = ControlSet([ReplicatedPart("O", numbers_space(features * channels))])

    def first(self) -> Controls:
        return self.control_set.functions({"O": self.start})

    def joined(self, in_time: LayerControls, arrays: Mapping[str, np.ndarray]) -> OpenedControls:
        return OpenedControls(
            in_time.coefficients, in_time.biases, in_time.parameters, arrays["O"].reshape(self.start.shape))

    def derivatives(self, derivative: LayerControls) -> dict[str, np.ndarray]:
        opening = derivative.arrays[-1]
        return {"O": opening.reshape(1, self.start.size, *opening.shape[2:])}

    def open(self, layers: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        _applied(layers.arrays[-1], x, out)

    def open_tangent(self, direction: LayerControls, x: np.ndarray, out: np.ndarray) -> None:
        self.open(direction, x, out)

    def pull(self, lam: np.ndarray, x: np.ndarray, total: LayerControls) -> None:
        total.arrays[-1][:] += np.einsum("nci,nqi->cq", lam[:, :, : x.shape[-1]], x, dtype=float, optimize=True)

    def pull_each(self, lam: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.einsum("nci,nqi->cqi", lam[:, :, : x.shape[-1]], x, dtype=float),)
