"""A sample whose images move a little each time they are drawn, as is usual in training image classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrlnet.fields.sample import Sample

__all__ = ["ShiftedSample"]


@dataclass(frozen=True)
class ShiftedSample(Sample):
    """A sample that shifts the images it is asked for by whole pixels, filling up with 0.

    Only :meth:`chosen`, which mini-batches are drawn by, shifts; the images themselves stay.

    Parameters
    ----------
    images, labels, classes
        As those of :class:`~ctrlnet.Sample`, with two pixel axes.
    pixels_of_shift
        Shifts along each axis are drawn from -pixels_of_shift to pixels_of_shift.
    rng
        Draws them; the same on any number of ranks.

    Raises
    ------
    ValueError
        As :class:`~ctrlnet.Sample`, or if the shift is negative, there is no generator, or images are not 2D.
    """

    pixels_of_shift: int = 1
    rng: np.random.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels_of_shift < 0 or self.rng is None or self.images.ndim != 3:
            raise ValueError(
                "A ShiftedSample needs 2D images, pixels_of_shift of 0 or more and a generator; received images of "
                f"shape {self.images.shape}, pixels_of_shift={self.pixels_of_shift!r}, rng={self.rng!r}."
            )

    def chosen(self, numbers: np.ndarray) -> Sample:
        """Return the images of the given numbers, each shifted by a draw of its own."""
        most = self.pixels_of_shift
        images = self.images[numbers]
        rows, columns = images.shape[1:]
        shift = self.rng.integers(-most, most + 1, size=(2, len(images), 1))
        padded = np.pad(images, ((0, 0), (most, most), (most, most)))
        r, c = (np.arange(n) + most + s for n, s in zip((rows, columns), shift, strict=True))
        moved = padded[np.arange(len(images))[:, None, None], r[:, :, None], c[:, None, :]]
        return Sample(moved, self.labels[numbers], self.classes)
