"""The number of steps from an error estimate, and trained controls at other depths."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace
from support.networks import blobs, small_network, small_problem, square

import ctrlnet as cn
from ctrlnet.adapt.depth import DepthError, adapt_depth
from ctrlnet.fields import PixelProjection
from ctrlnet.network.propagation import propagate

SCHEMES = {"euler": (cn.ForwardEuler(), 1e-2), "rk4": (cn.RungeKutta(), 1e-6),
           "midpoint": (cn.ImplicitMidpoint(), 1e-4), "backward": (cn.BackwardEuler(), 5e-2)}


def network_and_controls(scheme, comm=None, **settings):
    extra = {} if comm is None else {"comm": comm}
    network = small_network(layers=2, integrator=scheme, **settings, **extra)
    s, b = network.control_space.random(np.random.default_rng(0), 0.4)
    return network, s, b


def true_error(network, s, b, steps, reference):
    """The relative error of Y(T) of the images, against many more steps."""
    def final(count):
        net = network.with_depth(steps=count)
        images = blobs(12).images
        Y0 = PixelProjection(net.space, images.shape[1:])(images)
        start = Function(net.state_space(12))
        net.opening.open(net.layers((s, b)), Y0[:, None], start.dat.data.reshape(-1, net.features, 12))
        return propagate(net, (s, b), start).dat.data_ro
    mass = network.operators.mass[:, None]
    fine, coarse = final(reference), final(steps)
    return np.sqrt((mass * (coarse - fine) ** 2).sum() / (mass * fine**2).sum())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_estimate_is_the_error_and_the_steps_are_the_fewest(scheme):
    integrator, tolerance = SCHEMES[scheme]
    network, s, b = network_and_controls(integrator)
    found = adapt_depth(network, blobs(12), (s, b), tolerance)
    steps, cells = found.network.steps, network.control_space.cells
    assert found.error <= tolerance and steps % cells == 0
    assert found.error == next(e.error for e in found.estimates if e.steps == steps)
    actual = true_error(network, s, b, steps, 16 * steps)
    assert abs(actual / found.error - 1) < 0.2, f"estimated {found.error}, actual {actual}"
    assert actual < 1.1 * tolerance
    if steps > cells:
        fewer = true_error(network, s, b, steps - cells, 16 * steps)
        assert fewer > 0.9 * tolerance, f"{steps - cells} steps would have done: {fewer}"
    orders = [e.order for e in found.estimates if e.order is not None]
    assert orders and abs(orders[-1] - integrator.order) < 0.4, "the estimates show the scheme's order"


def test_scores_have_an_error_of_their_own():
    problem = small_problem(network=small_network(layers=2))
    m = problem.controls(np.random.default_rng(0), 0.4)
    m.W.dat.data[:] = np.random.default_rng(1).standard_normal(m.W.dat.data_ro.shape)
    found = adapt_depth(problem.network, blobs(12), m, 1e-2, classifier=problem.readout)
    scores = []
    for network in (found.network, problem.network.with_depth(steps=2048)):
        moved = cn.SampleAverage(problem.readout.on(network), blobs(12))
        scores.append(moved.scores(network.layers(m), *problem.readout.arrays(m)))
    actual = np.linalg.norm(scores[0] - scores[1]) / np.linalg.norm(scores[1])
    assert found.error <= 1e-2 and actual == pytest.approx(found.error, rel=0.3)


def test_few_unstable_steps_are_passed_over():
    """Explicit diffusion with h nu/width^2 far above its limit grows beyond all bounds: the estimate sees it."""
    network, s, b = network_and_controls(cn.ForwardEuler(), cells=12, T=8.0, dynamics=cn.ReactionDiffusion(2.0))
    found = adapt_depth(network, blobs(4), (s, b), 5e-2)
    assert found.estimates[0].error > 0.5 and found.error <= 5e-2
    assert found.network.steps >= 4 * 2.0 * 8.0 / 0.5**2 / 2, "below the stability limit there is no small error"


def test_the_limit_is_an_error_that_has_the_estimates():
    network, s, b = network_and_controls(cn.ForwardEuler())
    with pytest.raises(DepthError, match=r"up to the limit of 16 .* estimated error of 8 steps") as e:
        adapt_depth(network, blobs(4), (s, b), 1e-9, limit=16)
    assert [x.steps for x in e.value.estimates] == [2, 4, 8]
    s.dat.data[:] = np.nan
    with pytest.raises(DepthError, match=r"the propagation fails with 16 steps \(the state is not finite\)"):
        adapt_depth(network, blobs(4), (s, b), 1e-2, limit=16)


@pytest.mark.parametrize("tolerance, limit, message", [
    (0.0, 64, "tolerance must be positive and finite, received 0.0"),
    (1e-2, 3, "received limit=3. Allow at least 4 steps"),
])
def test_arguments_are_checked(tolerance, limit, message):
    network, s, b = network_and_controls(cn.ForwardEuler())
    with pytest.raises(ValueError, match=message):
        adapt_depth(network, blobs(4), (s, b), tolerance, limit=limit)


def test_trained_controls_run_with_two_and_four_times_the_layers():
    r"""The same s(t), b(t): the accuracy stays, and below h L = 1 the scores approach the scheme's first order.

    L is the largest norm of :math:`K(t) = \sum_j s_j(t) D_j`, a Lipschitz constant of the right-hand side. Trained
    controls make h L large at the depth of their training: the order shows at many more layers only.
    """
    problem = small_problem(network=small_network(layers=4))
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0))[:2], iterations=8)
    network = problem.network
    S = network.layers(result.controls).coefficients
    D = np.array([m[:, :] for m in network.operators.matrices])
    K = np.einsum("kjoc,jnm->knomc", S, D).reshape(len(S), D.shape[1] * network.features, -1)
    L = np.linalg.norm(K, 2, axis=(1, 2)).max()
    factors, scores, accuracy = 2 ** np.arange(11), [], []
    for factor in factors:
        deeper = network.with_depth(steps=4 * int(factor))
        moved = cn.SampleAverage(problem.readout.on(deeper), problem.average.sample)
        arrays = (deeper.layers(result.controls), *problem.readout.arrays(result.controls))
        scores.append(moved.scores(*arrays))
        accuracy.append(moved.accuracy(*arrays))
    errors = np.array([np.linalg.norm(x - y) for x, y in zip(scores, scores[1:], strict=False)])
    ratios, hL = errors[:-1] / errors[1:], L * network.control_space.T / (4 * factors[:-2])
    orders, resolved = np.log2(ratios), hL < 1
    assert resolved.sum() >= 3, f"the steps reach h L < 1: {hL}"
    assert orders[resolved].min() > 0.7 and abs(orders[-1] - 1) < 0.1, f"at h L = {hL} orders {orders}"
    assert ratios.min() > 1.1, f"each doubling brings the scores closer: {errors}"
    assert accuracy[0] > 0.9 and min(accuracy[1:3]) > accuracy[0] - 0.05


def test_mesh_and_depth_grow_together():
    """Time hierarchy and mesh hierarchy in one: each level starts from the same functions, prolonged in time."""
    shallow = small_network(3, layers=2)
    deep = shallow.with_depth(shallow.control_space.finer(), steps=4).on(FunctionSpace(square(6), "CG", 1))
    problems = [small_problem(network=shallow), small_problem(network=deep)]
    s, b, _, _ = problems[0].controls(np.random.default_rng(0))
    first, second = cn.train_multiscale(problems, (s, b), iterations=[4, 3])
    start = problems[1].network.control_space
    assert (start.cells, second.problem.network.steps) == (4, 4)
    prolonged = shallow.control_space.prolong(first.controls, start)
    again = cn.train_level(problems[1], prolonged, iterations=0).history.last.objective
    assert second.history.iterations[0].objective == pytest.approx(again, rel=1e-8)
    assert second.history.last.objective < second.history.iterations[0].objective


@pytest.mark.parallel(nprocs=2)
def test_same_depth_on_two_ranks():
    def found(comm):
        network, s, b = network_and_controls(cn.ForwardEuler(), comm=comm)
        return adapt_depth(network, blobs(12), (s, b), 2e-2)

    mine, alone = found(COMM_WORLD), found(COMM_SELF)
    assert mine.network.steps == alone.network.steps
    np.testing.assert_allclose([e.error for e in mine.estimates], [e.error for e in alone.estimates], rtol=1e-10)
