"""The classifier's conjugate gradients on arrays, and what they say where they do not converge."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from ctrlnet.optimise.classifier.conjugate_gradients import conjugate_gradients

SHAPE = (6, 5)


@pytest.fixture
def matrix():
    """A symmetric positive definite matrix of condition number 1e3."""
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 30)))[0]
    return (vectors * np.geomspace(1e-2, 10, 30)) @ vectors.T


def by(matrix):
    return lambda x: (matrix @ x.ravel()).reshape(SHAPE)


def test_they_solve_in_the_preconditioners_norm(matrix):
    """One iteration with the inverse itself; with the diagonal until the residual's norm there is small enough."""
    b, diagonal = np.random.default_rng(1).standard_normal(SHAPE), np.diag(1 / np.diag(matrix))
    exact = np.linalg.solve(matrix, b.ravel()).reshape(SHAPE)
    x, iterations = conjugate_gradients(by(matrix), by(np.linalg.inv(matrix)), b, 1e-8, 50)
    assert iterations == 1 and np.abs(x - exact).max() < 1e-10 * np.abs(exact).max()
    for rtol in (1e-1, 1e-4, 1e-10):
        x, iterations = conjugate_gradients(by(matrix), by(diagonal), b, rtol, 200)
        r = b - by(matrix)(x)
        assert 1 < iterations < 200
        assert np.sqrt((r * by(diagonal)(r)).sum() / (b * by(diagonal)(b)).sum()) <= rtol * (1 + 1e-3)


def test_what_is_zero_takes_no_iteration(matrix):
    x, iterations = conjugate_gradients(by(matrix), by(np.eye(30)), np.zeros(SHAPE), 1e-8, 50)
    assert iterations == 0 and not x.any()


def test_they_report_all_iterations_where_they_do_not_converge(matrix):
    b = np.ones(SHAPE)
    x, iterations = conjugate_gradients(by(matrix), by(np.eye(30)), b, 1e-12, 3)
    assert iterations == 3 and np.isfinite(x).all() and x.any()
    for maps in ((by(np.nan * matrix), by(np.eye(30))), (by(matrix), by(np.nan * np.eye(30)))):
        x, iterations = conjugate_gradients(*maps, b, 1e-8, 7)
        assert iterations == 7 and np.isnan(x).all()


def test_a_solve_leaves_nothing_behind(matrix):
    """PETSc's objects hold the maps, and these a sample's features; both go with the solve."""
    product = by(matrix)
    conjugate_gradients(product, by(np.eye(30)), np.ones(SHAPE), 1e-8, 50)
    gone = weakref.ref(product)
    del product
    gc.collect()
    assert gone() is None
