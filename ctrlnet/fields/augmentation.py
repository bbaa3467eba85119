"""Images that change a little each time they are drawn, as is usual in training image classifiers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ctrlnet.errors import finite
from ctrlnet.fields.sample import Sample

__all__ = ["Augmentation", "AugmentedSample", "Crop", "Flip", "Noise", "Shift"]


class Augmentation(ABC):
    """A random change of images, or of other inputs; one's own is a subclass.

    Attributes
    ----------
    moves
        Whether it moves what is in a picture, so that targets at nodes would have to move with it.
    """

    moves = True

    @abstractmethod
    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return changed images (n, q, pixels...) of the same shape; the given ones stay."""


@dataclass(frozen=True)
class Shift(Augmentation):
    """A shift along every axis by a whole number of pixels from ``-pixels`` to ``pixels``, with 0 coming in."""

    pixels: int = 1

    def __post_init__(self) -> None:
        _check_pixels(self.pixels, "shift")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        axes, count = images.shape[2:], len(images)
        shifts = rng.integers(-self.pixels, self.pixels + 1, size=(len(axes), count, 1))
        padded = np.pad(images, ((0, 0), (0, 0), *[(self.pixels, self.pixels)] * len(axes)))
        return _picked(padded, [np.arange(n) + self.pixels + s for n, s in zip(axes, shifts, strict=True)])


@dataclass(frozen=True)
class Flip(Augmentation):
    """A reflection of half of the images along a pixel axis: 0 is the first, -1 the last, columns."""

    axis: int = -1

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        dim = images.ndim - 2
        if not -dim <= self.axis < dim:
            raise ValueError(f"Images of {dim} pixel axes cannot be flipped along axis {self.axis}.")
        out, chosen = images.copy(), rng.random(len(images)) < 0.5
        out[chosen] = np.flip(images[chosen], axis=2 + self.axis % dim)
        return out


@dataclass(frozen=True)
class Crop(Augmentation):
    """A window that is smaller by ``pixels`` along every axis, at a random place, enlarged by linear interpolation."""

    pixels: int = 1

    def __post_init__(self) -> None:
        _check_pixels(self.pixels, "crop")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = images
        for axis, n in enumerate(images.shape[2:], 2):
            if self.pixels >= n:
                raise ValueError(f"Images of {n} pixels along an axis cannot be cropped by {self.pixels}.")
            first = rng.integers(0, self.pixels + 1, size=(len(images), 1))
            place = np.clip(first + (np.arange(n) + 0.5) * (n - self.pixels) / n - 0.5, 0, n - 1)
            low = np.minimum(place.astype(int), n - 2) if n > 1 else np.zeros_like(place, dtype=int)
            shape = [len(images), *[1] * (images.ndim - 1)]
            shape[axis] = n
            low, share = low.reshape(shape), (place - low).reshape(shape)
            above = np.minimum(low + 1, n - 1)
            out = (1 - share) * np.take_along_axis(out, low, axis) + share * np.take_along_axis(out, above, axis)
        return out


@dataclass(frozen=True)
class Noise(Augmentation):
    """Normal noise of standard deviation ``size``, independent for every pixel and channel."""

    size: float = 0.1
    moves = False

    def __post_init__(self) -> None:
        if not (finite(self.size) and self.size >= 0):
            raise ValueError(f"The size of noise must not be negative, and finite; received {self.size!r}.")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return images + self.size * rng.standard_normal(images.shape)


class AugmentedSample(Sample):
    """A sample whose images change when they are drawn.

    Only :meth:`chosen`, which mini-batches are drawn by, changes images; those of the sample stay. Averaged to coarser
    pixels it still does: the images are changed first and averaged then.

    Parameters
    ----------
    sample
        Of pixels, or of other values that every rank has, where no augmentation moves them.
    augmentations
        One after another.
    rng
        Draws them; the same on any number of ranks.

    Raises
    ------
    ValueError
        If the inputs are split over ranks, there are no pixels to move, there is no generator, or an augmentation moves
        pictures whose targets are at nodes.
    """

    def __init__(self, sample: Sample, augmentations: Sequence[Augmentation], rng: np.random.Generator):
        if not callable(getattr(rng, "standard_normal", None)):
            raise ValueError(f"Augmentations are drawn by a generator, np.random.default_rng(seed); received {rng!r}.")
        if sample.targets is not None and any(a.moves for a in augmentations):
            try:
                sample.targets.of_images()
            except ValueError as error:
                raise ValueError(
                    "An augmentation that moves a picture leaves its targets at nodes where they were. Take those "
                    "alone that do not move it, such as Noise.") from error
        self._fine = sample.inputs
        if any(a.moves for a in augmentations):
            self._fine.pixels  # noqa: B018 - raises where there are none
        one = self._fine.chosen(np.arange(1))
        one.with_values(one.values(0, 1))  # raises where inputs cannot be changed by draws
        self.inputs, self.targets = sample.inputs, sample.targets
        self._augmentations, self._rng, self._factor = tuple(augmentations), rng, 1

    @property
    def generators(self) -> tuple[np.random.Generator, ...]:
        return (self._rng,)

    def averaged(self, factor: int) -> AugmentedSample:
        out = object.__new__(AugmentedSample)
        out.__dict__ |= self.__dict__
        out.inputs, out._factor = self.inputs.averaged(factor), factor * self._factor
        return out

    def chosen(self, numbers: np.ndarray) -> Sample:
        """Return the images of the given numbers, each changed by draws of its own."""
        inputs = self._fine.chosen(numbers)
        values = inputs.values(0, len(inputs))
        for augmentation in self._augmentations:
            values = augmentation(values, self._rng)
        out = object.__new__(Sample)
        changed = inputs.with_values(values)
        out.inputs = changed if self._factor == 1 else changed.averaged(self._factor)
        out.targets = None if self.targets is None else self.targets.chosen(numbers)
        return out


def _check_pixels(pixels: int, what: str) -> None:
    if not isinstance(pixels, int | np.integer) or pixels < 0:
        raise ValueError(f"A {what} is by a whole number of pixels, 0 or more; received {pixels!r}.")


def _picked(padded: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    """Return the pixels at places (n, pixels) along each axis of images (n, q, ...)."""
    out = padded
    for axis, place in enumerate(places, 2):
        shape = [len(padded), *[1] * (padded.ndim - 1)]
        shape[axis] = place.shape[1]
        out = np.take_along_axis(out, place.reshape(shape), axis)
    return out
