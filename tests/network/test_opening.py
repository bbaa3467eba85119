"""The opening Y(0) = O x: fixed or learned, with one channel or several."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, FunctionSpace
from support.networks import blobs, small_network, square
from support.points import arrays_of, like
from support.ranks import assert_equal, on_ranks
from support.targets import problem_of, start_of

import ctrlnet as cn
from ctrlnet.fields import NodalValues, Pixels
from ctrlnet.integrators.runge_kutta import heun
from ctrlnet.network import FixedOpening, LearnedOpening
from ctrlnet.optimise import FirstOrder, JointFunctional, Limits, ProjectedFunctional, SchurGaussNewton, TaoOptimiser
from ctrlnet.optimise.presets import LINE_SEARCH

COUNT = 20


def colours(count=COUNT):
    """Three channels, with the classes of the blobs: the blobs, their squares and noise."""
    grey, rng = blobs(count), np.random.default_rng(8)
    images = np.stack([grey.images, grey.images**2, 0.5 * rng.random(grey.images.shape)], axis=-1)
    return cn.Sample(Pixels(images, channel_axis=-1), grey.labels, 3)


def coloured_problem(opening, sample=None, beside=None, **settings):
    """A problem of colours; of the same controls in time and classifier as another one beside it."""
    if beside is None:
        network = small_network(layers=2, features=4, opening=opening, **settings)
        space = FunctionSpace(square(2), "CG", 1)
    else:
        network = cn.Network(beside.network.operators, beside.network.control_space, opening=opening)
        space = beside.readout.space
    readout = cn.Readout(network, 3, space)
    return cn.TrainingProblem(
        readout, colours() if sample is None else sample, control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2,
        opening_size=1e-2)


class TestFixed:
    def test_equal_channels_give_the_numbers_of_the_grey_network(self):
        """(a, a, a) opened by the mean of the channels, or by the first of them."""
        grey = blobs(COUNT)
        thrice = cn.Sample(Pixels(np.stack([grey.images] * 3, axis=1), channel_axis=1), grey.labels, 3)
        expected = coloured_problem(FixedOpening([1.0, -0.5, 0.0, 2.0]), sample=grey)
        m = start_of(expected)
        for columns in ([1.0, 0.0, 0.0], [0.25, 0.25, 0.5]):
            matrix = np.outer([1.0, -0.5, 0.0, 2.0], columns)
            problem = coloured_problem(FixedOpening(matrix), sample=thrice, beside=expected)
            one, other = (p.average.at(p.point(m).layers) for p in (problem, expected))
            W, beta = expected.readout.arrays(m)
            assert one.value(W, beta) == pytest.approx(other.value(W, beta), rel=1e-14)
            for a, b in zip(one.gradient(W, beta).arrays, other.gradient(W, beta).arrays, strict=True):
                assert np.allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max(initial=0.0))
            first, second = (
                cn.train_level(p, m, iterations=3).history.column("objective") for p in (problem, expected))
            assert np.allclose(first, second, rtol=1e-9)

    def test_the_first_features_are_the_channels(self):
        opening = FixedOpening.of_channels(4, 2)
        x, out = np.random.default_rng(0).random((5, 2, 3)), np.full((5, 4, 8), np.nan)
        opening.open(None, x, out)
        assert np.array_equal(out[:, :2, :3], x) and not out[:, 2:].any() and not out[..., 3:].any()


class TestLearned:
    @pytest.fixture
    def problem(self):
        return coloured_problem(LearnedOpening(4, 3))

    def test_it_is_a_control_with_a_start(self, problem):
        assert problem.control_set.names == ("s", "b", "O", "W", "beta")
        m = problem.controls()
        assert np.array_equal(m.O.dat.data_ro.reshape(4, 3), np.eye(4, 3))
        start = np.random.default_rng(0).random((4, 3))
        m = coloured_problem(LearnedOpening(4, 3, start)).controls()
        assert np.array_equal(m.O.dat.data_ro.reshape(4, 3), start)

    def test_its_numbers_are_those_of_the_fixed_opening(self, problem):
        m = start_of(problem)
        fixed = coloured_problem(FixedOpening(m.O.dat.data_ro.reshape(4, 3)), beside=problem)
        others = m.restricted([n for n in m.names if n != "O"])
        loss = problem.average_loss(m)
        assert loss == pytest.approx(fixed.average_loss(others), rel=1e-14)
        penalty = float(problem.functional(m)) - float(fixed.functional(others)) - (loss - fixed.average_loss(others))
        assert penalty == pytest.approx(1e-2 / 2 * (m.O.dat.data_ro**2).sum(), rel=1e-9)

    @pytest.mark.parametrize("scheme", ["euler", "imex", "runge-kutta"])
    def test_taylor_remainders_are_of_order_two_and_three(self, scheme, assert_taylor, normal_function):
        settings = {
            "euler": {}, "imex": {"dynamics": cn.ReactionDiffusion(0.1), "integrator": cn.IMEX()},
            "runge-kutta": {"integrator": cn.RungeKutta(heun)}}[scheme]
        problem = coloured_problem(LearnedOpening(4, 3), **settings)
        m = start_of(problem)
        rng = np.random.default_rng(3)
        direction = [normal_function(f.function_space(), rng, 0.1) for f in m]
        assert_taylor(problem.reduced_functional(m), m, direction)
        alone = [d if n == "O" else d._ad_mul(0.0) for n, d in zip(m.names, direction, strict=True)]
        assert_taylor(problem.reduced_functional(m), m, alone)

    @pytest.mark.parametrize("limit", [10**9, 60_000, 0])
    def test_products_whatever_the_memory(self, limit, monkeypatch):
        monkeypatch.setattr("ctrlnet.objective.chunks._BYTES", 1)
        readout = coloured_problem(LearnedOpening(4, 3)).readout
        problem = cn.TrainingProblem(readout, colours(40), memory_limit=limit)
        point = problem.point(start_of(problem))
        layers, W, beta = point
        rng = np.random.default_rng(5)
        d, e = (like(point, [rng.standard_normal(a.shape) for a in arrays_of(point)]) for _ in range(2))
        at = problem.average.at(layers)
        assert at.tangent(W, beta, d) == pytest.approx(at.gradient(W, beta).dot(d), rel=1e-12)
        assert at.hessian(W, beta, d).dot(e) == pytest.approx(at.hessian(W, beta, e).dot(d), rel=1e-11)
        assert at.gauss_newton(W, beta, d).dot(e) == pytest.approx(at.gauss_newton(W, beta, e).dot(d), rel=1e-11)
        rows = at.imagewise.rows(W, np.ones((3, 40)))
        whole = [a.sum(axis=-1) for a in rows.arrays]
        ones = at.imagewise  # the sum of all images' own derivatives is that of the sum of all scores
        expected = at.gradient(W, beta).layers
        assert [a.shape for a in whole] == [a.shape for a in expected.arrays] and ones is not None

    def test_rows_add_up_to_the_gradient(self, problem):
        layers, W, beta = problem.point(start_of(problem))
        at = problem.average.at(layers)
        rows = at.imagewise
        scores = W.T @ rows.features() + beta[:, None]
        dscores = problem.average.loss.gradient(scores, rows.targets, rows.weights)
        found = rows.rows(W, dscores)
        for mine, whole in zip(found.arrays, at.layers_gradient(W, beta).arrays, strict=True):
            assert np.allclose(mine.sum(axis=-1), whole, rtol=0, atol=1e-12 * np.abs(whole).max(initial=0.0))

    def test_a_kept_state_is_opened_anew(self, problem):
        m = start_of(problem)
        J = problem.reduced_functional(m)
        before = float(J(m))
        moved = m.replace(O=m.O._ad_mul(1.1))
        assert float(J(moved)) != before and float(J(m)) == before

    def test_every_optimiser_takes_it(self, problem):
        in_time = problem.network.control_space.random(np.random.default_rng(0), 0.3)
        result = cn.train_level(problem, in_time, iterations=4)
        assert result.history.last.objective < result.history.iterations[0].objective
        assert np.abs(result.controls.O.dat.data_ro.reshape(4, 3) - np.eye(4, 3)).max() > 1e-4
        m = start_of(problem)
        for functional in (JointFunctional(problem, m),
                           ProjectedFunctional(problem, m.restricted(problem.network.control_set.names))):
            solver = TaoOptimiser(functional, LINE_SEARCH, Limits(2), curvature="gauss_newton")
            solver.solve()
            objectives = solver.history.column("objective")
            assert objectives[-1] < objectives[0]
        FirstOrder(JointFunctional(problem, m), np.random.default_rng(1), batch=10, limits=Limits(2)).solve()

    def test_the_explicit_matrix_is_the_schur_complement(self, problem):
        m = start_of(problem).restricted(problem.network.control_set.names)
        functional = ProjectedFunctional(problem, m, inner_tolerance=1e-13)
        functional(list(m))
        coordinates = problem.coordinates(functional.names)
        explicit = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 10**6, 3, damping=0.0)
        explicit.refresh()
        x = np.random.default_rng(1).standard_normal(coordinates.size)
        product = coordinates.dual_array(functional.gauss_newton(coordinates.functions(x)))
        assert np.abs(explicit.apply(x) - product).max() < 1e-10 * np.abs(product).max()

    def test_it_moves_to_other_meshes_and_depths(self, problem):
        coarse_net = problem.network
        fine_net = coarse_net.on(FunctionSpace(square(12), "CG", 1)).with_depth(coarse_net.control_space.finer())
        fine = cn.TrainingProblem(problem.readout.on(fine_net), colours(), work=problem.work)
        results = cn.train_multiscale(
            [problem, fine], coarse_net.control_space.random(np.random.default_rng(0), 0.3), iterations=[2, 0])
        ours, theirs = (r.controls.O.dat.data_ro for r in results)
        assert np.array_equal(ours, theirs)
        moved, controls = cn_carry(coarse_net, results[0].controls, fine_net)
        assert controls.O is results[0].controls.O and moved.opening is coarse_net.opening


def cn_carry(network, m, fine):
    from ctrlnet.transfer import carry

    return carry(network, m, fine.space, control_space=fine.control_space)


def numbers(comm):
    network = small_network(layers=2, features=4, opening=LearnedOpening(4, 2), comm=comm)
    V = network.space
    from support.targets import places

    x = places(V)
    inputs = np.stack([np.sin(x[:, 0] + np.arange(9)[:, None]), np.cos(x[:, 1] * np.arange(9)[:, None])], axis=1)
    readout = cn.Readout(network, 3, FunctionSpace(square(1, comm=comm), "DG", 0))
    problem = cn.TrainingProblem(readout, cn.Sample(NodalValues(V, inputs), np.arange(9) % 3, 3))
    point = problem.point(start_of(problem))
    layers, W, beta = point
    at = problem.average.at(layers)
    out = {"J": np.array(at.value(W, beta)), "scores": problem.average.scores(layers, W, beta)}
    out |= {f"gradient {k}": a for k, a in enumerate(at.gradient(W, beta).arrays) if a.size}
    out |= {f"Hessian {k}": a for k, a in enumerate(at.hessian(W, beta, point).arrays) if a.size}
    return out


@on_ranks
def test_the_same_numbers_on_any_number_of_ranks():
    assert_equal(numbers(COMM_WORLD), numbers(COMM_SELF))


class TestBadInput:
    @pytest.mark.parametrize("matrix", [[[np.nan]], np.ones((2, 2, 2)), np.ones((0, 1)), 1.0])
    def test_no_matrix(self, matrix):
        with pytest.raises(ValueError, match="finite matrix of features x channels"):
            FixedOpening(matrix)

    def test_no_room_for_the_channels(self):
        with pytest.raises(ValueError, match="2 features have room for 1 to 2 channels, received 3"):
            LearnedOpening(2, 3)

    def test_a_start_of_another_shape(self):
        with pytest.raises(ValueError, match=r"has shape \(4, 3\); received \(3, 4\)"):
            LearnedOpening(4, 3, np.ones((3, 4)))

    def test_inputs_of_other_channels(self):
        with pytest.raises(ValueError, match=r"3 channel\(s\), the network opens 1\. .*of_channels\(4, 3\)"):
            coloured_problem(None)


def test_targets_at_nodes_with_a_learned_opening(assert_taylor, normal_function):
    network = small_network(layers=2, opening=LearnedOpening(2, 1))
    problem = problem_of("field", network=network)
    m = start_of(problem)
    rng = np.random.default_rng(3)
    assert_taylor(problem.reduced_functional(m), m, [normal_function(f.function_space(), rng, 0.1) for f in m])
