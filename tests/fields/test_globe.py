"""Pictures on a globe."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import FunctionSpace, UnitSquareMesh

import ctrlnet as cn
from ctrlnet.fields import Pixels, globe_pixels, transferred_pixels
from ctrlnet.fields.nodal_transfer import node_places
from ctrlnet.operators import FullWeighting, sphere_hierarchy

SPACES = [FunctionSpace(mesh, "CG", 1) for mesh in sphere_hierarchy(14.0, 4)]


def test_a_picture_lies_on_its_half_sphere():
    V = SPACES[4]
    n = node_places(V) / 14.0
    rows, columns = np.meshgrid(np.arange(28) + 0.5, np.arange(28) + 0.5, indexing="ij")
    right, up = (columns / 28 * 2 - 1) * 1.5, (1 - rows / 28 * 2) * 1.5
    found = globe_pixels(V, (28, 28))(np.stack([right, up, np.ones((28, 28))]))
    p = 2 * n[:, 1:] / (1 + n[:, :1])
    inner = (n[:, 0] > 0) & (np.abs(p).max(axis=1) < 1.5 - 1.5 / 28)
    assert inner.sum() > 800 and np.allclose(found[inner, :2], p[inner], atol=1e-12)
    outside = (n[:, 0] < -1e-9) | (np.abs(p).max(axis=1) > 1.5 + 1e-9)
    assert np.allclose(found[inner, 2], 1.0) and not found[outside].any()


def test_directions():
    """Around another centre the same picture: everything is turned."""
    V = SPACES[3]
    images = np.random.default_rng(0).random((2, 28, 28))
    x = node_places(V)
    one, other = globe_pixels(V, (28, 28)), globe_pixels(V, (28, 28), centre=(0, 0, -3.0), up=(0.5, 0, 1))
    # x -> z', y -> y', z -> x': right-handed if x looks down and z along x.
    turned = np.stack([x[:, 2], x[:, 1], -x[:, 0]], axis=1)
    order, there = (np.lexsort(a.round(6).T) for a in (x, turned))
    if np.allclose(x[order], turned[there], atol=1e-6):
        assert np.allclose(one(images)[there], other(images)[order], atol=1e-10)
    middle = x[np.abs(other(np.ones((1, 28, 28)))[:, 0]) > 0].mean(axis=0)
    assert np.allclose(middle / np.linalg.norm(middle), [0, 0, -1], atol=0.05)


def test_coarse_levels_see_the_restricted_picture():
    fine, coarse = SPACES[4], SPACES[2]
    through = transferred_pixels(globe_pixels(fine, (28, 28)), coarse, FullWeighting())
    images = np.random.default_rng(0).random((3, 28, 28))
    inputs = Pixels(images)
    found = through.nodal(inputs, 0, 3)
    assert found.shape == (162, 1, 3)
    mean = [cn.low_order_operators(V).mass @ f for V, f in (
        (coarse, found[:, 0]), (fine, globe_pixels(fine, (28, 28))(images)))]
    assert np.allclose(*mean), "full weighting keeps the integral"


@pytest.mark.parametrize("call, message", [
    (lambda: globe_pixels(FunctionSpace(UnitSquareMesh(2, 2), "CG", 1), (4, 4)), "A globe is a surface"),
    (lambda: globe_pixels(SPACES[1], (4,)), "rows and columns, received pixel_shape"),
    (lambda: globe_pixels(SPACES[1], (4, 4), half_width=0.0), "half width of a picture must be positive and finite"),
    (lambda: globe_pixels(SPACES[1], (4, 4), up=(2.0, 0, 0)), "a centre and a direction up across it"),
])
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
