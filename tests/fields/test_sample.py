"""A labelled sample: what it holds, how it is drawn, and everything it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ctrlnet import Sample


def images(n=4, shape=(4, 4), dtype=np.uint8):
    return np.random.default_rng(1).integers(0, 256, (n, *shape)).astype(dtype)


LABELS = np.array([0, 2, 1, 2])


def test_bytes_stand_for_zero_to_one():
    pixels = images()
    sample = Sample(pixels, LABELS, 3)
    assert len(sample) == 4 and sample.pixels == (4, 4) and sample.images.dtype == np.uint8
    np.testing.assert_array_equal(sample.values(1, 3), pixels[1:3] / 255)
    floats = Sample(pixels / 255, LABELS, 3)
    np.testing.assert_array_equal(floats.values(0, 4), sample.values(0, 4))


@pytest.mark.parametrize("shape", [(8,), (4, 8), (2, 4, 6)])
def test_averaged_pixels_keep_the_mean(shape):
    for sample in (Sample(images(4, shape), LABELS, 3), Sample(images(4, shape, float) / 255, LABELS, 3)):
        coarse = sample.averaged(2)
        assert coarse.pixels == tuple(p // 2 for p in shape) and coarse.images.shape == (4, *coarse.pixels)
        axes = tuple(range(1, len(shape) + 1))
        np.testing.assert_allclose(coarse.values(0, 4).mean(axis=axes), sample.values(0, 4).mean(axis=axes), rtol=1e-14)
        np.testing.assert_array_equal(coarse.labels, sample.labels)
        assert sample.averaged(1) is sample


def test_draws_are_the_generators():
    sample = Sample(images(4), LABELS, 3)
    one, other = (sample.drawn(3, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one.images, other.images)
    assert len(one) == 3 and one.classes == 3
    everything = sample.drawn(4, np.random.default_rng(4))
    np.testing.assert_array_equal(np.sort(everything.labels), np.sort(LABELS))
    # Without replacement, each image with its own label.
    for image, label in zip(everything.images, everything.labels, strict=True):
        matches = np.flatnonzero((sample.images == image).all(axis=(1, 2)))
        assert matches.size == 1 and sample.labels[matches[0]] == label


def with_bad_pixel(value):
    pixels = images(dtype=float)
    pixels[2, 1, 1] = value
    return pixels


BAD = {
    "no image axis": ((np.zeros(4), LABELS), r"shape \(n, pixels\.\.\.\).*received shape \(4,\).*image\[None\]"),
    "too many axes": ((np.zeros((4, 2, 2, 2, 2)), LABELS), r"1 to 3 pixel axes, received shape \(4, 2, 2, 2, 2\)"),
    "empty batch": ((np.zeros((0, 4, 4)), np.zeros(0, int)), r"at least one image .*received \(0, 4, 4\)"),
    "no pixels": ((np.zeros((4, 0, 4)), LABELS), r"at least one pixel, received \(4, 0, 4\)"),
    "NaN": ((with_bad_pixel(np.nan), LABELS), "1 of 4 images hold NaN or infinite values, the first is number 2"),
    "infinity": ((with_bad_pixel(-np.inf), LABELS), "1 of 4 images hold NaN or infinite.*Remove or repair"),
    "complex": ((images(dtype=complex), LABELS), "must be an array of numbers .* received complex128"),
    "words": ((np.array([["a", "b"]] * 4), LABELS), "must be an array of numbers .* received <U1"),
    "fewer labels": ((images(), LABELS[:3]), "4 inputs need as many targets, received 3"),
    "labels of two axes": ((images(), LABELS[:, None]), r"one number an image, received labels of shape \(4, 1\)"),
    "float labels": ((images(), LABELS.astype(float)), "Labels must be integers, received float64"),
    "negative label": ((images(), LABELS - 1), r"Labels must lie in 0 to 2, received -1 to 1"),
    "label too large": ((images(), LABELS + 1), r"Labels must lie in 0 to 2, received 1 to 3.*or give classes="),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_refused(name):
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Sample(*arguments, 3)


@pytest.mark.parametrize("count", [0, 5, -1])
def test_bad_draws_are_refused(count):
    with pytest.raises(ValueError, match=f"Cannot draw {count} images from a sample of 4; ask for 1 to 4"):
        Sample(images(), LABELS, 3).drawn(count, np.random.default_rng(0))
