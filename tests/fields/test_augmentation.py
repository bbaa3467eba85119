"""Images that change when they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import FunctionSpace
from support.networks import blobs, small_problem, square

import ctrlnet as cn
from ctrlnet.fields import (
    Augmentation,
    AugmentedSample,
    Crop,
    Flip,
    NodalClasses,
    NodalValues,
    Noise,
    Pixels,
    Shift,
    average_pixels,
)
from ctrlnet.optimise import FirstOrder, JointFunctional, Limits

IMAGES = np.random.default_rng(0).random((20, 2, 6, 8))


def test_a_shift_moves_each_image_by_whole_pixels():
    found = set()
    for image, original in zip(Shift(1)(IMAGES, np.random.default_rng(0)), IMAGES, strict=True):
        padded = np.pad(original, ((0, 0), (1, 1), (1, 1)))
        windows = {(r, c): padded[:, 1 + r : 7 + r, 1 + c : 9 + c] for r in (-1, 0, 1) for c in (-1, 0, 1)}
        matches = [shift for shift, window in windows.items() if np.array_equal(image, window)]
        assert len(matches) == 1, "a whole pixel's shift, with nothing but 0 coming in"
        found.add(matches[0])
    assert len(found) > 4


def test_half_of_the_images_are_flipped():
    flipped = Flip(0)(IMAGES, np.random.default_rng(0))
    turned = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, IMAGES, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True)) and 4 < sum(turned) < 16


def test_a_crop_enlarges_a_window():
    ramp = np.broadcast_to(np.arange(8.0), (20, 1, 6, 8))
    cropped = Crop(2)(ramp, np.random.default_rng(0))
    assert np.allclose(Crop(2)(np.ones((3, 1, 6, 8)), np.random.default_rng(0)), 1.0)
    inner = np.diff(cropped, axis=-1)[..., 1:-1]
    assert np.allclose(inner, 6 / 8), "linear interpolation of a window of 6 pixels to 8"
    assert len(np.unique(cropped[:, 0, 0, 3])) > 1
    assert np.array_equal(Crop(0)(IMAGES, np.random.default_rng(0)), IMAGES)


def test_noise_has_its_size():
    noise = Noise(0.3)(np.zeros((50, 1, 20, 20)), np.random.default_rng(0))
    assert noise.std() == pytest.approx(0.3, rel=0.02)


def test_a_sample_changes_what_is_drawn_and_stays_itself():
    sample = blobs(20)
    augmented = AugmentedSample(sample, [Shift(1), Flip(-1), Noise(0.1)], np.random.default_rng(0))
    drawn, again = augmented.chosen(np.arange(20)), augmented.chosen(np.arange(20))
    assert np.array_equal(augmented.images, sample.images) and np.array_equal(drawn.labels, sample.labels)
    assert not np.array_equal(drawn.values(0, 20), again.values(0, 20))
    other = AugmentedSample(sample, [Shift(1), Flip(-1), Noise(0.1)], np.random.default_rng(0)).chosen(np.arange(20))
    assert np.array_equal(drawn.values(0, 20), other.values(0, 20))


def test_an_averaged_sample_still_shifts():
    """By fine pixels, which coarse ones can not: images are shifted first and averaged then."""
    sample = blobs(20)
    coarse = AugmentedSample(sample, [Shift(1)], np.random.default_rng(0)).averaged(2)
    assert coarse.pixels == (3, 3)
    fine = AugmentedSample(sample, [Shift(1)], np.random.default_rng(0)).chosen(np.arange(20))
    assert np.allclose(coarse.chosen(np.arange(20)).values(0, 20), average_pixels(fine.values(0, 20), 2))
    assert np.allclose(coarse.values(0, 20), sample.averaged(2).values(0, 20))


class Negative(Augmentation):
    """A user's own."""

    moves = False

    def __call__(self, images, rng):
        return 1.0 - images


def test_ones_own_and_training_by_batches():
    problem = small_problem(count=40)
    sample = AugmentedSample(blobs(40), [Shift(1), Negative()], np.random.default_rng(3))
    moving = cn.TrainingProblem(problem.readout, sample, control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)
    solver = FirstOrder(
        JointFunctional(moving, moving.controls(np.random.default_rng(0), 0.3)), np.random.default_rng(1), batch=10,
        limits=Limits(2))
    solver.solve()
    assert np.isfinite(solver.history.last.objective)


def test_channels_and_targets_at_nodes():
    V = FunctionSpace(square(5), "CG", 1)
    colours = Pixels(IMAGES, channel_axis=1)
    at_nodes = NodalClasses(V, np.zeros((20, V.dim()), int), 2)
    drawn = AugmentedSample(cn.Sample(colours, at_nodes), [Noise(0.1)], np.random.default_rng(0)).chosen(np.arange(3))
    assert drawn.inputs.channels == 2 and len(drawn.targets) == 3
    with pytest.raises(ValueError, match="leaves its targets at nodes where they were"):
        AugmentedSample(cn.Sample(colours, at_nodes), [Noise(0.1), Shift(1)], np.random.default_rng(0))


@pytest.mark.parametrize("make, message", [
    (lambda: Shift(-1), "whole number of pixels, 0 or more; received -1"),
    (lambda: Crop(1.5), "whole number of pixels, 0 or more; received 1.5"),
    (lambda: Noise(-0.1), "must not be negative, and finite; received -0.1"),
    (lambda: Flip(2)(IMAGES, np.random.default_rng(0)), "2 pixel axes cannot be flipped along axis 2"),
    (lambda: Crop(6)(IMAGES, np.random.default_rng(0)), "6 pixels along an axis cannot be cropped by 6"),
    (lambda: AugmentedSample(blobs(3), [Shift(1)], None), "drawn by a generator, .*received None"),
    (lambda: AugmentedSample(nodal_sample(), [Shift(1)], np.random.default_rng(0)), "no pixels"),
    (lambda: AugmentedSample(nodal_sample(), [Noise(0.1)], np.random.default_rng(0)), "split over ranks"),
])
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def nodal_sample():
    V = FunctionSpace(square(2), "CG", 1)
    return cn.Sample(NodalValues(V, np.zeros((3, 9))), [0, 1, 2], 3)
