"""Stencils against the formulas they come from, and the change of basis both ways."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import correlate

from ctrlnet.operators import stencils
from ctrlnet.operators.stencils import names, rescale, stencil_basis, to_coefficients, to_stencil

EPS = np.finfo(float).eps


@pytest.mark.parametrize("h", [1.0, 2.0])
def test_one_dimensional_formulas(h):
    identity, first, second = stencil_basis((h,))
    np.testing.assert_array_equal(identity, [0, 1, 0])
    np.testing.assert_array_equal(first, np.array([-1, 0, 1]) / (2 * h))
    np.testing.assert_array_equal(second, np.array([1, -2, 1]) / h**2)
    s = (0.3, -1.7, 0.25)
    np.testing.assert_allclose(to_stencil(s, (h,)), s[0] * identity + s[1] * first + s[2] * second, rtol=EPS)


def test_example_of_the_source_follows_its_formula():
    kernel = [-1, -2, 1]
    np.testing.assert_array_equal(to_coefficients(kernel, (1.0,)), [-2, 2, 0])
    np.testing.assert_array_equal(rescale(kernel, (1.0,), (2.0,)), [-0.5, -2, 0.5])
    # What the source prints instead has the formula's stencil (-1.5, -1, 0.5) at h = 1.
    np.testing.assert_array_equal(to_stencil([-2, 2, -0.5], (1.0,)), [-1.5, -1, 0.5])
    assert "does not follow from its formula" in " ".join(stencils.__doc__.split())


def test_order_and_names():
    assert names(1) == ("1", "dx", "dxx")
    assert names(2) == ("1", "dy", "dyy", "dx", "dx dy", "dx dyy", "dxx", "dxx dy", "dxx dyy")
    assert len(set(names(3))) == 27
    assert names(3)[9 * 1 + 3 * 0 + 2] == "dx dzz"


@pytest.mark.parametrize("h", [(0.5,), (0.5, 2.0), (0.5, 2.0, 0.25)])
def test_basis_is_the_tensor_product(h):
    one_dimensional = [stencil_basis((step,)) for step in h]
    basis = stencil_basis(h)
    for stencil, member in zip(basis, itertools.product(range(3), repeat=len(h)), strict=True):
        factors = [one_dimensional[axis][order] for axis, order in enumerate(member)]
        expected = factors[0]
        for factor in factors[1:]:
            expected = np.multiply.outer(expected, factor)
        np.testing.assert_allclose(stencil, expected, rtol=4 * EPS)


# Compiled kernels may have set the processor to flush subnormal numbers to zero.
finite = partial(st.floats, allow_subnormal=False)
spacing = finite(0.25, 4.0)
spacings = st.integers(1, 3).flatmap(lambda dim: st.tuples(*[spacing] * dim))
trailing = hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)


@st.composite
def coefficients_and_spacings(draw, copies=1):
    h = [draw(spacings)]
    h += [draw(st.tuples(*[spacing] * len(h[0]))) for _ in range(copies - 1)]
    shape = (3 ** len(h[0]), *draw(trailing))
    return draw(hnp.arrays(float, shape, elements=finite(-10, 10))), *h


@given(coefficients_and_spacings())
def test_round_trip(case):
    coefficients, h = case
    stencil = to_stencil(coefficients, h)
    assert stencil.shape == (3,) * len(h) + coefficients.shape[1:]
    # The rounding of the stencil's entries, up to (4 / h^2)^dim, comes back through the inverse.
    np.testing.assert_allclose(to_coefficients(stencil, h), coefficients, rtol=0, atol=1e-8)
    np.testing.assert_allclose(to_stencil(to_coefficients(stencil, h), h), stencil, rtol=0, atol=1e-7)


@given(coefficients_and_spacings(copies=2))
def test_rescaling_keeps_the_operator(case):
    coefficients, h_from, h_to = case
    moved = rescale(to_stencil(coefficients, h_from), h_from, h_to)
    np.testing.assert_allclose(moved, to_stencil(coefficients, h_to), rtol=0, atol=1e-6)


def test_round_trip_to_round_off():
    rng = np.random.default_rng(1)
    for dim in (1, 2, 3):
        stencil = rng.standard_normal((3,) * dim + (2, 4))
        back = to_stencil(to_coefficients(stencil, (1.0,) * dim), (1.0,) * dim)
        np.testing.assert_allclose(back, stencil, atol=1e-14)


@pytest.mark.parametrize("h", [(0.5,), (0.5, 0.25), (0.5, 0.25, 2.0)])
def test_exact_on_polynomials(h):
    """d, d2 are exact for degree 2 and 3 per axis, and no further: both are of second order."""
    dim = len(h)
    points = np.meshgrid(*[0.3 + step * np.arange(-1, 2) for step in h], indexing="ij")
    for stencil, member in zip(stencil_basis(h), itertools.product(range(3), repeat=dim), strict=True):
        for powers in itertools.product(range(4), repeat=dim):
            values = np.prod([x**p for x, p in zip(points, powers, strict=True)], axis=0)
            expected = 1.0
            for order, power in zip(member, powers, strict=True):
                derivative = np.polynomial.Polynomial.basis(power).deriv(order) if order else None
                expected *= derivative(0.3) if order else 0.3**power
            exact = all(order != 1 or power <= 2 for order, power in zip(member, powers, strict=True))
            if exact or expected != 0:
                assert np.isclose((stencil * values).sum(), expected, rtol=0, atol=1e-11) == exact


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_second_order_of_consistency(dim):
    """Every member converges at order 2 on a smooth function."""
    direction, centre = np.array([1.0, -0.7, 1.3])[:dim], np.array([0.3, 0.2, -0.4])[:dim]
    # u = exp(a.x), so every derivative is known.
    exact = [
        np.prod(direction ** np.array(m)) * np.exp(direction @ centre)
        for m in itertools.product(range(3), repeat=dim)
    ]
    errors = []
    for step in (0.1, 0.05):
        h = step * np.array([1.0, 1.5, 0.8])[:dim]
        offsets = np.meshgrid(*[np.arange(-1, 2) * s for s in h], indexing="ij")
        values = np.exp(sum(a * (c + o) for a, c, o in zip(direction, centre, offsets, strict=True)))
        errors.append(np.abs(np.tensordot(stencil_basis(h), values, axes=dim) - exact)[1:])
    order = np.log2(errors[0] / errors[1])
    assert order.min() > 1.95, f"central differences are of second order, measured {order}"


def test_correlation_and_picture_rows():
    """The kernel for picture rows, as documented, differentiates upwards and to the right."""
    rows, columns = 5, 6
    x, y = np.meshgrid(np.arange(columns) + 0.5, rows - np.arange(rows) - 0.5)
    picture = 3 * x + 10 * y
    for name, expected in (("dx", 3), ("dy", 10), ("dxx", 0)):
        stencil = stencil_basis((1.0, 1.0))[names(2).index(name)]
        kernel = np.flip(stencil.swapaxes(0, 1), axis=0)
        np.testing.assert_allclose(correlate(picture, kernel)[1:-1, 1:-1], expected, atol=1e-12)
        np.testing.assert_array_equal(np.flip(kernel, axis=0).swapaxes(0, 1), stencil)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: names(4), "received dim = 4"),
        (lambda: stencil_basis(()), r"received h = \(\)"),
        (lambda: stencil_basis(1.0), r"received h = 1\.0"),
        (lambda: stencil_basis((1.0, 0.0)), "positive finite"),
        (lambda: stencil_basis((1.0, np.nan)), "positive finite"),
        (lambda: to_stencil(np.zeros(8), (1.0, 1.0)), r"received the shape \(8,\)"),
        (lambda: to_stencil(1.0, (1.0,)), r"received the shape \(\)"),
        (lambda: to_coefficients(np.zeros((3, 2)), (1.0, 1.0)), r"received the shape \(3, 2\)"),
        (lambda: rescale(np.zeros(3), (1.0,), (1.0, 1.0)), "different dimension"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
