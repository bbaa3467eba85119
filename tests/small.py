"""Small problems that several test files share."""

import numpy as np
from firedrake import COMM_WORLD, Function, FunctionSpace, RectangleMesh, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional

import ctrlnet as cn
from ctrlnet.propagation import PropagationBlock


def square(cells, quadrilateral=True, comm=COMM_WORLD):
    """A mesh of the square of side 6."""
    return RectangleMesh(cells, cells, 6.0, 6.0, quadrilateral=quadrilateral, comm=comm)


def small_network(cells=6, features=2, layers=3, T=1.5, basis=cn.low_order_operators, comm=COMM_WORLD, **settings):
    """A network on a square of 6 x 6 length units."""
    operators = basis(FunctionSpace(square(cells, comm=comm), "CG", 1))
    learned = settings["dynamics"].parameters if settings.get("dynamics") else 0
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


def check_derivatives_whatever_the_memory(network, assert_taylor):
    """Value, scores and gradient are the same with stored, recomputed and checkpointed states; then Taylor tests."""
    values, gradients = [], []
    for limit in (2**31, 2 * network.sweep.trajectory_bytes(5, 32), 1):
        problem = small_problem(network=network, memory_limit=limit)
        point = list(problem.controls(np.random.default_rng(0)))
        for f, scale in zip(point[1:3], (0.3, 1.0), strict=True):
            f.dat.data[:] = scale * np.random.default_rng(1).standard_normal(f.dat.data_ro.shape)
        functional = problem.reduced_functional(*point)
        values.append(float(functional(point)))
        scores = problem.average.scores(*problem.arrays(*point))
        np.testing.assert_array_equal(problem.average.scores(*problem.arrays(*point)), scores)
        gradients.append(np.concatenate([g.dat.data_ro.ravel() for g in functional.derivative()]))
    np.testing.assert_allclose(values[1:], values[0], rtol=1e-14)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=0, atol=1e-13 * np.abs(gradients[0]).max())
    direction = [f._ad_copy() for f in point]
    for f in direction:
        f.dat.data[:] = 0.1 * np.random.default_rng(2).standard_normal(f.dat.data_ro.shape)
    assert_taylor(functional, point, direction)


def check_dot_products(case, points, direction, tolerance=1e-12):
    """<w, F' d> = <F'^* w, d> for perturbations of s, b, Y0, one by one and together."""
    block = PropagationBlock(case.network, *points)
    weight = Function(case.Y0.function_space()).riesz_representation("l2")
    weight.dat.data[:] = np.random.default_rng(11).standard_normal(weight.dat.data_ro.shape)
    gradient = block.prepare_evaluate_adj(points, [weight], None)
    for chosen in ([0], [1], [2], [0, 1, 2]):
        parts = [d if k in chosen else None for k, d in enumerate(direction)]
        change = block.evaluate_tlm_component(points, parts, None, 0)
        left = weight.dat.data_ro.ravel() @ change.dat.data_ro.ravel()
        right = sum(gradient[k].dat.data_ro.ravel() @ direction[k].dat.data_ro.ravel() for k in chosen)
        scale = np.linalg.norm(weight.dat.data_ro) * np.linalg.norm(change.dat.data_ro)
        assert abs(left - right) <= tolerance * scale, f"<w, F'd> = {left}, <F'*w, d> = {right}"


def check_derivatives(case, annotation, assert_taylor=None):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    points, direction = [case.s, case.b, case.Y0], list(case.perturbation())
    check_dot_products(case, points, direction)
    if assert_taylor is None:
        return
    with annotation() as tape:
        Y = cn.propagate(case.network, *points)
        J = ReducedFunctional(assemble((inner(Y, Y) + 0.1 * inner(Y, Y) ** 2) * dx), [Control(c) for c in points],
                              tape=tape)
    assert_taylor(J, points, direction)
