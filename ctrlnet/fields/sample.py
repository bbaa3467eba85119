"""A labelled sample of images, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.fields.pixels import average_pixels

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """Images with their classes.

    Parameters
    ----------
    images
        (n, pixels along each axis), n >= 1; uint8 pixels (0 to 255) stand for 0 to 1, floats for themselves.
    labels
        (n,) classes 0 to ``classes - 1``.
    classes
        K.

    Raises
    ------
    ValueError
        For an empty sample, images of the wrong shape, pixels that are not finite, labels of another count,
        of another type or out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int = 10

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim not in (2, 3, 4):
            raise ValueError(
                f"Images must have shape (n, pixels...) with 1 to 3 pixel axes, received shape {images.shape}. "
                "Add the leading axis of a single image with image[None]."
            )
        if images.shape[0] == 0 or 0 in images.shape:
            raise ValueError(f"A sample needs at least one image with at least one pixel, received {images.shape}.")
        if images.dtype != np.uint8:
            if not np.issubdtype(images.dtype, np.floating):
                raise ValueError(f"Pixels must be uint8 or floating point, received {images.dtype}. Convert them.")
            bad = ~np.isfinite(images.reshape(images.shape[0], -1)).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{bad.sum()} of {bad.size} images hold NaN or infinite pixels, the first is number "
                    f"{int(np.argmax(bad))}. Remove or repair them."
                )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{images.shape[0]} images need as many labels, received labels of shape {labels.shape}.")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"Labels must be integers, received {labels.dtype}.")
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"Labels must lie in 0 to {self.classes - 1}, received {labels.min()} to {labels.max()}. "
                "Check the labels, or give classes=."
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def pixels(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def averaged(self, factor: int) -> Sample:
        """Return the sample with ``factor`` pixels along each axis averaged into one."""
        if factor == 1:
            return self
        return Sample(average_pixels(self.images, factor) / self._white, self.labels, self.classes)

    @property
    def _white(self) -> float:
        return 255.0 if self.images.dtype == np.uint8 else 1.0

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return images ``start`` to ``stop`` as floats."""
        return self.images[start:stop] / self._white

    def drawn(self, count: int, rng: np.random.Generator) -> Sample:
        """Return ``count`` images drawn without replacement; the same draw on any number of ranks."""
        if not 1 <= count <= len(self):
            raise ValueError(f"Cannot draw {count} images from a sample of {len(self)}; ask for 1 to {len(self)}.")
        return self.chosen(rng.choice(len(self), size=count, replace=False))

    def chosen(self, numbers: np.ndarray) -> Sample:
        """Return the images of the given numbers, in their order."""
        return Sample(self.images[numbers], self.labels[numbers], self.classes)
