"""Inputs that are pixel or voxel images, grey or with channels."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.fields.pixel_map import average_pixels
from ctrlnet.fields.pixels import PixelProjection
from ctrlnet.fields.stores import Rows

__all__ = ["Pixels"]


class Pixels:
    """Images of 1 to 3 pixel axes and q channels.

    Parameters
    ----------
    images
        (n, pixels along each axis), or with an axis of channels; n >= 1. uint8 pixels (0 to 255) stand for 0 to 1,
        other numbers for themselves, true for 1. Also a memory map or a dataset of h5py, of which no more is read
        than is needed.
    channel_axis
        Number of the axis of channels, as NumPy counts axes: -1 for (n, rows, columns, q), 1 for (n, q, rows, columns).
        Default: one channel, and no axis for it. It is never guessed.
    mask
        True where a pixel is known, (n, pixels along each axis). Default: all are.

    Attributes
    ----------
    channels
        q.

    Raises
    ------
    ValueError
        If there is no image or pixel, there are other than 1 to 3 pixel axes, no such axis, no numbers, or a mask of
        another shape or type; for pixels that are not finite: at once where they are in memory and else when they are
        read.
    """

    def __init__(self, images: Any, channel_axis: int | None = None, mask: Any = None):
        self._images = Rows(images, "images")
        shape, self._axis = self._images.shape, None
        if channel_axis is not None:
            if not -len(shape) < channel_axis < len(shape) or channel_axis == 0:
                raise ValueError(
                    f"channel_axis is the number of one of the {len(shape)} axes, not the first, which counts the "
                    f"images; received {channel_axis!r} for images of shape {shape}.")
            self._axis = channel_axis % len(shape)
        if len(shape) - (self._axis is not None) not in (2, 3, 4):
            raise ValueError(
                f"Images must have shape (n, pixels...) with 1 to 3 pixel axes, received shape {shape}. Add the "
                "leading axis of a single image with image[None]; an axis of channels is named, "
                "Pixels(images, channel_axis=-1).")
        if 0 in shape:
            raise ValueError(f"A sample needs at least one image with at least one pixel, received {shape}.")
        self.channels = 1 if self._axis is None else shape[self._axis]
        self._mask = None if mask is None else Rows(mask, "masks")
        if self._mask is not None and (self._mask.shape != (len(self), *self.pixels) or self._mask.dtype != bool):
            raise ValueError(
                f"A mask is boolean, one entry a pixel: {(len(self), *self.pixels)}; received {self._mask.dtype} of "
                f"shape {self._mask.shape}.")
        if self._images.in_memory:
            self._check(0, len(self))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def images(self) -> np.ndarray:
        """All images as they were given, without an axis of channels where there is one; read as a whole."""
        return self._with_channels(0, len(self))[:, 0] if self.channels == 1 else self._images.read()

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read from a file."""
        return self._images.in_memory

    @property
    def pixels(self) -> tuple[int, ...]:
        return tuple(p for k, p in enumerate(self._images.shape) if k not in (0, self._axis))

    @property
    def space(self) -> WithGeometry:
        raise ValueError("These inputs are pixels, no nodal values: they have no finite-element space.")

    def _with_channels(self, start: int, stop: int) -> np.ndarray:
        """Return images (n, q, pixels...) as they are stored."""
        found = self._images.read(start, stop)
        return found[:, None] if self._axis is None else np.moveaxis(found, self._axis, 1)

    def _check(self, start: int, stop: int) -> None:
        if self._images.dtype.kind == "f":
            found, known = self._with_channels(start, stop), self.known(start, stop)
            self._images.check_finite(found if known is None else np.where(known, found, 0.0), start)

    def values(self, start: int, stop: int) -> np.ndarray:
        if not self.in_memory:
            self._check(start, stop)
        found, known = self._with_channels(start, stop), self.known(start, stop)
        values = found / 255.0 if found.dtype == np.uint8 else found.astype(float)
        return values if known is None else np.where(known, values, 0.0)

    def known(self, start: int, stop: int) -> np.ndarray | None:
        if self._mask is None:
            return None
        known = self._mask.read(start, stop)
        return np.broadcast_to(known[:, None], (len(known), self.channels, *known.shape[1:]))

    def chosen(self, numbers: np.ndarray) -> Self:
        out = copy.copy(self)
        out._images = self._images.chosen(numbers)
        out._mask = None if self._mask is None else self._mask.chosen(numbers)
        return out

    def with_values(self, values: np.ndarray) -> Pixels:
        """Return other images (n, q, pixels...) with these ones' mask."""
        out = Pixels(values, channel_axis=1)
        out._mask = self._mask
        return out

    def averaged(self, factor: int) -> Pixels:
        """Return the images with ``factor`` pixels along each axis averaged into one; known ones, where some are not.

        They are read as a whole.
        """
        if factor == 1:
            return self
        values, count = self.values(0, len(self)), len(self)
        coarse = average_pixels(values.reshape(-1, *self.pixels), factor)
        if self._mask is None:
            return Pixels(coarse.reshape(count, self.channels, *coarse.shape[1:]), channel_axis=1)
        share = average_pixels(self._mask.read(), factor)
        coarse = coarse.reshape(count, self.channels, *coarse.shape[1:]) / np.maximum(share, 1e-300)[:, None]
        return Pixels(coarse, channel_axis=1, mask=share > 0)

    def onto(self, V: WithGeometry) -> PixelProjection:
        """Return the projection of pixels that cover the mesh's bounding box."""
        try:
            return PixelProjection(V, self.pixels)
        except ValueError as error:
            if len(self.pixels) != V.mesh().geometric_dimension + 1:
                raise
            raise ValueError(
                f"{error} If one of the axes is that of channels, name it: Pixels(images, channel_axis=-1).") from error
