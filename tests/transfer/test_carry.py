"""Images, classifier and controls in time move with the kernels: to other meshes, to more layers, to both."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Function,
    FunctionSpace,
    MeshHierarchy,
    SpatialCoordinate,
    UnitSquareMesh,
    as_vector,
    cos,
    sin,
)
from mpi4py import MPI
from support.networks import blobs, small_network, small_problem, square
from support.surfaces import controls_of, network_on, smooth, spaces_on_spheres

import ctrlnet as cn
from ctrlnet.fields import PixelProjection, average_pixels, averaged_pixels, transferred_pixels
from ctrlnet.operators import FullWeighting, Linear, NestingError
from ctrlnet.optimise import update_classifier
from ctrlnet.transfer import carry, galerkin, galerkin_prolongation, restrict_classifier


def space(cells, comm=COMM_WORLD):
    return FunctionSpace(square(cells, comm=comm), "CG", 1)


def test_averaged_pixels_are_a_projection_of_averages():
    images = np.random.default_rng(0).random((5, 12, 12))
    V = space(3)
    assert np.allclose(averaged_pixels(V, (12, 12), 4)(images), PixelProjection(V, (3, 3))(average_pixels(images, 4)))
    assert np.allclose(averaged_pixels(V, (12, 12), 1)(images), PixelProjection(V, (12, 12))(images))
    for factor in (5, 0, 2.0):
        with pytest.raises(ValueError, match="do not divide images of \\(12, 12\\) pixels"):
            averaged_pixels(V, (12, 12), factor)
    with pytest.raises(ValueError, match="Build it for the network's own space"):
        cn.SampleAverage(cn.Readout(small_network(3), 3), blobs(9), projection=averaged_pixels(V, (6, 6), 2))
    with pytest.raises(ValueError, match="wrong shape"):
        averaged_pixels(V, (12, 12), 4)(images[:, :6])


def test_images_are_interpolated_to_a_finer_mesh_and_restricted_to_a_coarser_one():
    images = np.random.default_rng(0).random((4, 3, 3))
    coarse, fine = space(3), space(6)
    first = PixelProjection(coarse, (3, 3))
    up = transferred_pixels(first, fine)
    P, R = (t.matrix(coarse, fine)[:, :] for t in (Linear(), FullWeighting()))
    assert np.allclose(up(images), P @ first(images)), "by dense matrices"
    assert np.allclose(up(np.ones((1, 3, 3))), 1.0)
    down = transferred_pixels(PixelProjection(fine, (6, 6)), coarse, FullWeighting())
    large = np.random.default_rng(1).random((4, 6, 6))
    assert np.allclose(down(large), R @ PixelProjection(fine, (6, 6))(large))
    with pytest.raises(NestingError, match="one domain"):
        transferred_pixels(PixelProjection(FunctionSpace(UnitSquareMesh(3, 3), "CG", 1), (3, 3)), fine)


def field(W):
    x, y = SpatialCoordinate(W.function_space().mesh())
    return W.interpolate(as_vector([sin((k + 1) * x) + cos(y - 0.3 * k) for k in range(W.function_space().value_size)]))


def test_a_restricted_classifier_scores_a_state_as_it_scored_the_states_prolongation():
    """(R w, Y_H) = (w, P Y_H) in the lumped products: full weighting is the adjoint of interpolation."""
    networks = [small_network(3), small_network(6)]
    coarse, fine = (n.space for n in networks)
    readouts = [cn.Readout(n, 3, V) for n, V in zip(networks, (coarse, fine), strict=True)]
    W, beta = readouts[1].zero()
    field(W)
    beta.dat.data[:] = [[1.0, 2.0, 3.0]]
    W_H, beta_H = restrict_classifier(readouts[1], (W, beta), readouts[0])
    assert np.array_equal(beta_H.dat.data_ro, beta.dat.data_ro)
    Y = field(Function(networks[0].state_space(1)))
    values = Y.dat.data_ro.reshape(-1, 2, 1)
    P = Linear().matrix(coarse, fine)[:, :]
    mass = [cn.low_order_operators(V).mass for V in (coarse, fine)]
    w_H, w = (r.arrays(f)[0].reshape(-1, 2, 3) for r, f in zip(readouts, ((W_H, beta_H), (W, beta)), strict=True))
    coarse_scores = np.einsum("n,nc,nck->k", mass[0], values[:, :, 0], w_H)
    fine_scores = np.einsum("n,nc,nck->k", mass[1], P @ values[:, :, 0], w)
    assert np.abs(coarse_scores - fine_scores).max() < 1e-12 * np.abs(fine_scores).max()
    W.assign(2.0)
    W_H, _ = restrict_classifier(readouts[1], (W, beta), readouts[0])
    back, _ = readouts[0].prolong((W_H, beta_H), readouts[1])
    assert np.abs(back.dat.data_ro - 2.0).max() < 1e-12, "constants are kept"
    with pytest.raises(NestingError, match="not nested"):
        restrict_classifier(readouts[0], (W_H, beta_H), readouts[1])
    with pytest.raises(ValueError, match="3 classes and 2 features does not fit a readout of 4 classes"):
        restrict_classifier(readouts[1], (W, beta), cn.Readout(networks[0], 4, coarse))


def test_the_updated_classifier_is_the_best_one_and_leaves_the_controls():
    problem = small_problem()
    s, b, *_ = problem.controls(np.random.default_rng(0))
    before = s.dat.data_ro.copy()
    m, solution = update_classifier(problem, (s, b))
    assert m.s is s and m.b is b
    joint = problem.reduced_functional(m)
    joint(m)
    gradient = joint.derivative()
    assert max(np.abs(g.dat.data_ro).max() for g in gradient[2:]) < 1e-5
    assert np.array_equal(before, s.dat.data_ro) and solution.decrement < 1e-9
    assert problem.accuracy(blobs(60), m) > 0.6
    again = update_classifier(problem, m)[1]
    assert again.newton_iterations <= 2, "started at its solution"
    with pytest.raises(ValueError, match="weights_size > 0"):
        update_classifier(small_problem(weights_size=0.0), (s, b))


def test_a_network_is_carried_to_another_mesh_to_more_layers_and_to_both():
    meshes = MeshHierarchy(square(3), 1)
    coarse, fine = (FunctionSpace(m, "CG", 1) for m in meshes)
    D = cn.stencil_operators(fine)
    controls = cn.ControlSpace(1.0, 2, D, 2, refinements=2)
    network = cn.Network(D, controls)
    s, b = m = controls.random(np.random.default_rng(0))

    moved, found = carry(network, m, coarse)
    assert moved.space is coarse and moved.steps == 2 and found.s is s and found.b is b
    moved, found = carry(network, m, coarse, kernels=galerkin)
    s_H = found.s
    s_h = carry(moved, found, fine, kernels=galerkin_prolongation)[1].s
    assert np.abs(s_H.dat.data_ro - s.dat.data_ro).max() > 1e-3
    assert np.abs(s_h.dat.data_ro - s.dat.data_ro).max() < 1e-10, "there and back"

    deepest = controls.finer().finer()
    whole = m.extended(cn.Readout(network, 3).zero())
    deep, m_d = carry(network, whole, control_space=deepest)
    assert m_d.W is whole.W and m_d.beta is whole.beta, "a classifier stays"
    assert deep.steps == 8 and deep.space is fine
    assert np.array_equal(deep.layers(m_d).coefficients, np.repeat(network.layers(m).coefficients, 4, axis=0))
    both, m_b = carry(network, (s, b), coarse, kernels=galerkin, control_space=controls.finer(), steps=6)
    assert both.steps == 6 and both.space is coarse
    once = network.with_depth().layers((s_H, b)).coefficients
    assert np.allclose(both.layers(m_b).coefficients, np.repeat(once, 3, axis=0))
    more = carry(network, (s, b), steps=4)[0]
    assert more.steps == 4 and more.control_space is controls
    with pytest.raises(ValueError, match="2 cells does not refine the network's, which has 2"):
        carry(network, (s, b), control_space=cn.ControlSpace(1.0, 2, D, 2))


def test_more_layers_of_the_same_function_of_time_approach_the_ode(annotation):
    """Depth alone: the state of a carried network converges with order 1 as its steps are halved."""
    network = small_network(6, layers=2)
    s, b = network.control_space.random(np.random.default_rng(0), 0.3)
    Y0 = field(Function(network.state_space(1)))
    finals = [cn.propagate(network.with_depth(steps=n), (s, b), Y0).dat.data_ro.copy() for n in (8, 16, 32, 64)]
    errors = [np.abs(a - b).max() for a, b in zip(finals, finals[1:], strict=False)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - 1).max() < 0.2, orders


def test_networks_and_classifiers_move_between_levels_of_a_sphere():
    """By rediscretisation and carry: the same controls on each level; scores of both levels approach each other."""
    levels = spaces_on_spheres(4)
    network = network_on(levels[2], dynamics=cn.ReactionDiffusion(0.3), integrator=cn.IMEX())
    readout = cn.Readout(network, 3, levels[1])
    m = controls_of(network).extended(readout.zero().replace(W=smooth(readout.weights_space)))
    found = []
    for V in levels[2:]:
        moved, m_V = carry(network, m, V)
        assert moved.space is V and m_V.s is m.s and m_V.W is m.W
        Y = cn.propagate(moved, moved.control_set.controls(m_V), smooth(moved.state_space(2)))
        there = readout.on(moved)
        weights, _ = there.arrays(m_V)
        found.append(weights.T @ there.restrict(Y.dat.data_ro.reshape(-1, 2, 2)))
    errors = [np.abs(a - b).max() for a, b in zip(found, found[1:], strict=False)]
    assert 3.0 < errors[0] / errors[1] < 5.0, errors
    with pytest.raises(NestingError, match="42 nodes is not nested in .* with 162: .* curved surface, whose levels"):
        carry(network, m, levels[1], kernels=galerkin)


def test_a_classifier_is_restricted_to_a_coarser_sphere():
    """(R w, Y_H) = (w, P Y_H) in the lumped products, though the levels do not nest; refused the other way round."""
    levels = spaces_on_spheres(2)
    networks = [network_on(V) for V in levels[1:]]
    coarse, fine = (cn.Readout(n, 3) for n in networks)
    W, beta = smooth(fine.weights_space), fine.zero().beta
    W_H = restrict_classifier(fine, (W, beta), coarse).W
    Y = smooth(networks[0].state_space(1))
    P = Linear().matrix(*levels[1:])[:, :]
    coarse_scores, fine_scores = (
        r.arrays((w, beta))[0].T @ r.restrict(y[:, :, None]) for r, w, y in (
            (coarse, W_H, Y.dat.data_ro), (fine, W, P @ Y.dat.data_ro)))
    np.testing.assert_allclose(coarse_scores, fine_scores, rtol=1e-12)
    with pytest.raises(NestingError, match="not nested"):
        restrict_classifier(coarse, (W_H, beta), fine)


def start_of(network):
    return network.control_space.random(np.random.default_rng(0))


@pytest.mark.parallel(nprocs=[2, 3])
def test_images_and_classifier_on_any_number_of_ranks():
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        networks = [small_network(n, comm=comm) for n in (3, 6)]
        coarse, fine = (n.space for n in networks)
        readouts = [cn.Readout(n, 3, V) for n, V in zip(networks, (coarse, fine), strict=True)]
        W, beta = readouts[1].zero()
        W_H, _ = restrict_classifier(readouts[1], (field(W), beta), readouts[0])
        images = np.random.default_rng(0).random((9, 6, 6))
        sample = cn.Sample(images, np.arange(9) % 3, 3)
        up = transferred_pixels(averaged_pixels(coarse, (6, 6), 2), fine)
        scores = []
        for readout, weights, projection in (
            (readouts[0], W_H, averaged_pixels(coarse, (6, 6), 2)), (readouts[1], W, up)
        ):
            average = cn.SampleAverage(readout, sample, projection=projection)
            scores.append(average.scores(
                readout.network.layers(start_of(readout.network)), *readout.arrays((weights, beta))))
        problem = small_problem(network=networks[1])
        _, solution = update_classifier(problem, start_of(problem.network))
        found.append(np.concatenate([np.ravel(scores), [solution.value]]))
    error = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    assert COMM_WORLD.allreduce(float(error), op=MPI.MAX) < 1e-10


def test_controls_that_are_not_finite_are_not_carried():
    network = small_network()
    m = network.control_space.random(np.random.default_rng(0))
    m.b.assign(float("nan"))
    for move in (lambda: carry(network, m, FunctionSpace(square(3), "CG", 1)),
                 lambda: network.control_space.prolong(m, network.control_space.finer()),
                 lambda: network.control_space.interpolate(m, network.control_space.with_cells(2))):
        with pytest.raises(ValueError, match="The controls b have values that are not finite"):
            move()
