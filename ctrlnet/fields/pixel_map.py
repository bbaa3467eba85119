"""Pixels as arrays, and linear maps from them to nodal values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from firedrake.functionspaceimpl import WithGeometry
from scipy import sparse

from ctrlnet.fields.inputs import Inputs, with_missing

__all__ = ["PixelMap", "average_pixels", "checked_images"]


def average_pixels(images: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of ``factor`` pixels along every axis: the DG0 projection to a coarser pixel grid.

    Parameters
    ----------
    images
        Shape (n, p1[, p2[, p3]]), numbers.
    factor
        The width of a block, a divisor of every pixel count.

    Returns
    -------
    numpy.ndarray
        float64, shape (n, p1/factor[, p2/factor[, p3/factor]]).

    Raises
    ------
    ValueError
        If the batch is empty, has no pixel axis or has NaN or infinite pixels, or the pixel counts are not
        multiples of ``factor``.
    """
    images = checked_images(images)
    if not isinstance(factor, int | np.integer) or factor < 1 or any(p % factor for p in images.shape[1:]):
        raise ValueError(
            f"Pixels cannot be averaged in blocks of this width: received factor = {factor!r} for images of "
            f"{images.shape[1:]} pixels. Choose a positive integer that divides every pixel count, or crop "
            "or pad the images."
        )
    blocks = itertools.chain.from_iterable((p // factor, factor) for p in images.shape[1:])
    return images.reshape(len(images), *blocks).mean(axis=tuple(range(2, 2 * images.ndim, 2)), dtype=float)

# Of pixels as floats that are held at once: large pictures pass through a few at a time.
_BYTES = 2**24


class PixelMap:
    """A :class:`~ctrlnet.fields.inputs.NodalMap` by a sparse matrix from the pixels of an image to nodal values.

    Parameters
    ----------
    V
        Scalar space.
    pixel_shape
        The pixels of one image, in the order of its axes.
    matrix
        (nodes owned by this rank, pixels), pixels in the C order of an image.
    """

    def __init__(self, V: WithGeometry, pixel_shape: Sequence[int], matrix: sparse.csr_array):
        self.V, self.pixel_shape, self.matrix = V, tuple(pixel_shape), matrix

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the nodal values of a batch of images.

        Parameters
        ----------
        images
            Shape (n, *pixel_shape), uint8 or any other real numbers; they are not rescaled. Every rank
            passes the same images.

        Returns
        -------
        numpy.ndarray
            float64, shape (nodes owned by this rank, n), in the unit of the images; rows in the order of
            ``Function(V).dat.data_ro``.

        Raises
        ------
        ValueError
            If the batch is empty, is of another shape or has NaN or infinite pixels.
        """
        images = checked_images(images, self.pixel_shape)
        return self.matrix @ images.reshape(len(images), -1).T.astype(float, order="C")

    def check(self, inputs: Inputs) -> None:
        if tuple(inputs.pixels) != self.pixel_shape:
            raise ValueError(
                f"The inputs have {tuple(inputs.pixels)} pixels, but the map takes {self.pixel_shape} pixels to "
                f"{self.V}. Build it for the inputs' own pixels.")

    def nodal(self, inputs: Inputs, start: int, stop: int) -> np.ndarray:
        """Return the nodal values (owned nodes, q, n) of some inputs."""
        size = max(1, _BYTES // (8 * inputs.channels * self.matrix.shape[1]))
        spans = [(first, min(first + size, stop)) for first in range(start, stop, size)]
        parts = [with_missing(self._of_channels, inputs.values(*span), inputs.known(*span)) for span in spans]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _of_channels(self, values: np.ndarray) -> np.ndarray:
        count, channels = values.shape[:2]
        columns = np.moveaxis(values.reshape(count, channels, -1), 2, 0).swapaxes(1, 2)
        product = self.matrix @ np.ascontiguousarray(columns, dtype=float).reshape(self.matrix.shape[1], -1)
        return product.reshape(-1, channels, count)


def checked_images(images: np.ndarray, pixel_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the images as an array, or raise."""
    images = np.asarray(images)
    expected = "(n, p1[, p2[, p3]])" if pixel_shape is None else f"(n, {', '.join(map(str, pixel_shape))})"
    fits = images.ndim in (2, 3, 4) if pixel_shape is None else images.shape[1:] == pixel_shape
    if not fits or images.ndim < 2:
        raise ValueError(
            f"Images of the wrong shape: received {images.shape}, expected {expected}. Stack the images on "
            "axis 0 (a single one is image[None]), and average or pad them to the pixels expected."
        )
    if images.size == 0:
        raise ValueError(
            f"An empty batch: received images of shape {images.shape}. Give at least one image of at least "
            "one pixel."
        )
    if images.dtype.kind not in "buif":
        raise ValueError(
            f"Images are not real numbers: received {images.dtype}. Convert them to uint8 or to floats."
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = ~np.isfinite(images)
        raise ValueError(
            f"Pixels are not finite: received {bad.sum()} NaN or infinite pixels, the first at index "
            f"{tuple(int(i) for i in np.argwhere(bad)[0])}. Replace them, or leave these images out."
        )
    return images
