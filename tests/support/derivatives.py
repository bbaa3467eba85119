"""Checks of derivatives: adjoint and tangent dot products, Taylor remainders."""

import numpy as np
from firedrake import Function, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional

import ctrlnet as cn
from ctrlnet.network.propagation import PropagationBlock
from support.networks import small_problem


def agree(mine, oracle, what):
    error = np.abs(mine - oracle).max() / np.abs(oracle).max()
    assert error < 1e-11, f"{what} differs from the plain route by {error:.1e}"


def check_derivatives_whatever_the_memory(network, assert_taylor):
    """Value, scores and gradient are the same with stored, recomputed and checkpointed states; then Taylor tests."""
    values, gradients = [], []
    for limit in (2**31, 2 * network.sweep.trajectory_bytes(5, 32), 1):
        problem = small_problem(network=network, memory_limit=limit)
        point = problem.controls(np.random.default_rng(0))
        for f in point[1:-1]:
            scale = 1.0 if f is point.W else 0.3
            f.dat.data[:] = scale * np.random.default_rng(1).standard_normal(f.dat.data_ro.shape)
        functional = problem.reduced_functional(point)
        values.append(float(functional(point)))
        scores = problem.average.scores(*problem.point(point))
        np.testing.assert_array_equal(problem.average.scores(*problem.point(point)), scores)
        gradients.append(np.concatenate([g.dat.data_ro.ravel() for g in functional.derivative()]))
    np.testing.assert_allclose(values[1:], values[0], rtol=1e-14)
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=0, atol=1e-13 * np.abs(gradients[0]).max())
    direction = [f._ad_copy() for f in point]
    for f in direction:
        f.dat.data[:] = 0.1 * np.random.default_rng(2).standard_normal(f.dat.data_ro.shape)
    assert_taylor(functional, point, direction)


def check_dot_products(case, points, direction, tolerance=1e-12):
    """<w, F' d> = <F'^* w, d> for perturbations of the controls and Y0, one by one and together."""
    block = PropagationBlock(case.network, points[:-1], points[-1])
    weight = Function(case.Y0.function_space()).riesz_representation("l2")
    weight.dat.data[:] = np.random.default_rng(11).standard_normal(weight.dat.data_ro.shape)
    gradient = block.prepare_evaluate_adj(points, [weight], None)
    everything = list(range(len(points)))
    for chosen in (*([k] for k in everything), everything):
        parts = [d if k in chosen else None for k, d in enumerate(direction)]
        change = block.evaluate_tlm_component(points, parts, None, 0)
        left = weight.dat.data_ro.ravel() @ change.dat.data_ro.ravel()
        right = sum(gradient[k].dat.data_ro.ravel() @ direction[k].dat.data_ro.ravel() for k in chosen)
        scale = np.linalg.norm(weight.dat.data_ro) * np.linalg.norm(change.dat.data_ro)
        assert abs(left - right) <= tolerance * scale, f"<w, F'd> = {left}, <F'*w, d> = {right}"


def check_derivatives(case, annotation, assert_taylor=None):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    points, direction = case.points, list(case.perturbation())
    check_dot_products(case, points, direction)
    if assert_taylor is None:
        return
    with annotation() as tape:
        Y = cn.propagate(case.network, points[:-1], points[-1])
        J = ReducedFunctional(assemble((inner(Y, Y) + 0.1 * inner(Y, Y) ** 2) * dx), [Control(c) for c in points],
                              tape=tape)
    assert_taylor(J, points, direction)


def agree_to_round_off(mine, oracle, what, comm):
    """Two routes to the same numbers differ by less than 1e-10 of their size, on all ranks together."""
    error = comm.allreduce(np.abs(mine - oracle).max(initial=0.0), op=max)
    size = comm.allreduce(np.abs(oracle).max(initial=0.0), op=max)
    assert size > 0, f"{what} is zero: nothing is compared"
    assert error <= 1e-10 * size, f"{what} differs from the UFL reading by {error / size:.1e} of its size"
