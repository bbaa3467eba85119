"""Losses of scores: values by hand, derivatives by differences, extreme scores, weights."""

from __future__ import annotations

import numpy as np
import pytest

from ctrlnet import LeastSquares, SoftmaxCrossEntropy

LOSSES = [SoftmaxCrossEntropy(), LeastSquares()]
K, IMAGES = 4, 6


@pytest.fixture
def data():
    rng = np.random.default_rng(2)
    return rng.standard_normal((K, IMAGES)), rng.integers(0, K, IMAGES), rng.random(IMAGES), rng


def test_values_by_hand():
    scores, labels = np.array([[0.0, 1.0], [np.log(3.0), 1.0]]), np.array([1, 0])
    weights = np.array([0.5, 2.0])
    # Probabilities 3/4 and 1/2.
    expected = 0.5 * np.log(4 / 3) + 2 * np.log(2)
    np.testing.assert_allclose(SoftmaxCrossEntropy().value(scores, labels, weights), expected, rtol=1e-15)
    expected = 0.5 * 0.5 * (np.log(3) - 1) ** 2 + 2 * 0.5 * 1.0
    np.testing.assert_allclose(LeastSquares().value(scores, labels, weights), expected, rtol=1e-15)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_taylor(loss, data):
    """Remainders of order 2 and 3; the square loss is its own expansion."""
    scores, labels, weights, rng = data
    d = rng.standard_normal(scores.shape)
    slope = (loss.gradient(scores, labels, weights) * d).sum()
    curvature = (loss.hessian(scores, labels, weights, d) * d).sum()
    value = loss.value(scores, labels, weights)
    steps = 0.02 / 2.0 ** np.arange(4)
    changes = np.array([loss.value(scores + e * d, labels, weights) - value for e in steps])
    first = np.abs(changes - steps * slope)
    second = np.abs(changes - steps * slope - steps**2 / 2 * curvature)
    assert np.log2(first[:-1] / first[1:]).min() > 1.95
    if isinstance(loss, LeastSquares):
        assert second.max() < 1e-14, "a quadratic equals its Taylor polynomial"
    else:
        assert np.log2(second[:-1] / second[1:]).min() > 2.95


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_hessian_is_symmetric_and_positive(loss, data):
    """Convex in the scores: what variable projection rests on."""
    scores, labels, weights, rng = data
    for _ in range(5):
        d, e = rng.standard_normal((2, K, IMAGES))
        products = [(loss.hessian(scores, labels, weights, a) * b).sum() for a, b in ((d, e), (e, d))]
        np.testing.assert_allclose(*products, rtol=1e-12)
        assert (loss.hessian(scores, labels, weights, d) * d).sum() > 0


def test_cross_entropy_does_not_see_a_common_shift(data):
    scores, labels, weights, rng = data
    loss, shift = SoftmaxCrossEntropy(), 100 * rng.standard_normal(IMAGES)
    np.testing.assert_allclose(
        loss.value(scores + shift, labels, weights), loss.value(scores, labels, weights), rtol=1e-12
    )
    assert np.abs(loss.gradient(scores, labels, weights).sum(axis=0)).max() < 1e-15
    assert np.abs(loss.hessian(scores, labels, weights, np.ones((K, IMAGES)))).max() < 1e-15
    np.testing.assert_allclose(loss.probabilities(scores).sum(axis=0), 1.0, rtol=1e-15)


def test_cross_entropy_of_huge_scores():
    """log-sum-exp does not overflow: the loss of a score 1e5 behind is 1e5."""
    loss = SoftmaxCrossEntropy()
    scores, weights = np.array([[1e5, 1e5], [0.0, 0.0]]), np.ones(2)
    np.testing.assert_allclose(loss.value(scores, np.array([0, 1]), weights), 1e5, rtol=1e-15)
    np.testing.assert_array_equal(loss.gradient(scores, np.array([0, 1]), weights), [[0, 1], [0, -1]])
    assert np.isfinite(loss.hessian(scores, np.array([0, 1]), weights, np.ones((2, 2)))).all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_weights_split_the_sample(loss, data):
    """A mean over images, whatever the batch split; an image of weight 0 is not there."""
    scores, labels, _, _ = data
    weights = np.full(IMAGES, 1 / IMAGES)
    parts = [loss.value(scores[:, p], labels[p], weights[p]) for p in (slice(0, 2), slice(2, IMAGES))]
    np.testing.assert_allclose(sum(parts), loss.value(scores, labels, weights), rtol=1e-14)
    weights[3:] = 0.0
    np.testing.assert_allclose(
        loss.value(scores, labels, weights), loss.value(scores[:, :3], labels[:3], weights[:3]), rtol=1e-14
    )
    assert not loss.gradient(scores, labels, weights)[:, 3:].any()
