"""Points (layers' controls, W, beta) as plain arrays, and an average's value and derivatives at one of them."""

import numpy as np

from ctrlnet.objective import Point


def arrays_of(point):
    """Return (S, b, W, beta), or with learned parameters (S, b, r, W, beta); also of derivatives."""
    layers, *rest = point
    return tuple(a for a in layers.arrays if a.size) + tuple(rest)


def like(point, arrays):
    """Return the arrays as a point of the same kind."""
    layers, *rest = point
    arrays = list(arrays)
    found = [arrays.pop(0) if a.size else np.zeros(a.shape) for a in layers.arrays]
    assert len(arrays) == len(rest)
    return Point(layers.of(*found), *arrays)


def value_at(average, point):
    layers, W, beta = point
    return average.at(layers).value(W, beta)


def gradient_at(average, point):
    layers, W, beta = point
    return average.at(layers).gradient(W, beta)


def hessian_at(average, point, direction):
    layers, W, beta = point
    return average.at(layers).hessian(W, beta, direction)
