"""Small meshes, networks, samples and problems that tests of several rooms share."""

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace, RectangleMesh

import ctrlnet as cn


def square(cells, quadrilateral=True, comm=COMM_WORLD):
    """A mesh of the square of side 6."""
    return RectangleMesh(cells, cells, 6.0, 6.0, quadrilateral=quadrilateral, comm=comm)


def small_network(cells=6, features=2, layers=3, T=1.5, basis=cn.low_order_operators, comm=COMM_WORLD, **settings):
    """A network on a square of 6 x 6 length units."""
    operators = basis(FunctionSpace(square(cells, comm=comm), "CG", 1))
    learned = settings["dynamics"].parameters if settings.get("dynamics") else ()
    controls = cn.ControlSpace(T, layers, operators, features, refinements=1, parameters=learned)
    return cn.Network(operators, controls, **settings)


def blobs(count, classes=3, pixels=6, seed=0):
    """Images of a bright column (class 0), row (1) or nothing (2) under noise: easy to tell apart."""
    rng = np.random.default_rng(seed)
    images = 0.5 * rng.random((count, pixels, pixels))
    labels = np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(1, pixels - 1)
        if label == 0:
            image[:, place] += 0.7
        elif label == 1:
            image[place] += 0.7
    return cn.Sample(images, labels, classes)


def small_problem(cells=6, count=60, network=None, **settings):
    """A training problem with a classifier on a 2 x 2 mesh."""
    network = small_network(cells) if network is None else network
    readout = cn.Readout(network, 3, FunctionSpace(square(2, comm=network.comm), "CG", 1))
    defaults = dict(control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)
    return cn.TrainingProblem(readout, blobs(count), **(defaults | settings))
