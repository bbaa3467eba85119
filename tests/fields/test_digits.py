"""Digits on meshes: samples, spaces, nodal values as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import Function, SpatialCoordinate

from ctrlnet.fields import SIDE, as_picture, digit_samples, digit_space, mnist_sample


def test_all_digits_keep_their_order_and_a_subset_is_that_of_the_data():
    data, (train, test) = mnist_sample(), digit_samples()
    np.testing.assert_array_equal(train.images, data.train_images)
    np.testing.assert_array_equal(test.labels, data.test_labels)
    train, test = digit_samples(train=50, rng=np.random.default_rng(3))
    expected = data.subset(50, 1000, np.random.default_rng(3))
    np.testing.assert_array_equal(train.images, expected.train_images)
    np.testing.assert_array_equal(test.labels, expected.test_labels)


def test_a_draw_without_a_generator_and_a_folder_without_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give a seeded generator, rng="):
        digit_samples(train=10)
    with pytest.raises(FileNotFoundError, match="MNIST is incomplete"):
        digit_samples(tmp_path)


@pytest.mark.parallel([1, 2])
def test_nodal_values_are_a_picture_with_the_top_row_first_on_every_rank():
    V = digit_space(4)
    x, y = SpatialCoordinate(V.mesh())
    values = np.stack([Function(V).interpolate(c).dat.data_ro for c in (x, y)], axis=1)
    picture = as_picture(V, values)
    lines = np.linspace(0.0, SIDE, 5)
    np.testing.assert_allclose(picture[..., 0], np.tile(lines, (5, 1)), atol=1e-12)
    np.testing.assert_allclose(picture[..., 1], np.tile(lines[::-1, None], (1, 5)), atol=1e-12)
