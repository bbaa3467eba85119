"""What every average promises: its linearisation against differences and dense matrices, scores, every optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI
from pyadjoint.enlisting import Enlist
from support.averages import KINDS, problem_with, start_of
from support.points import arrays_of, gradient_at, like, value_at

import ctrlnet as cn
from ctrlnet.objective import Point
from ctrlnet.objective.losses import image_hessians
from ctrlnet.optimise import (
    FirstOrder,
    JointFunctional,
    Limits,
    ProjectedFunctional,
    SampleSchedule,
    SchurGaussNewton,
    StochasticOptimiser,
    TaoOptimiser,
)
from ctrlnet.optimise.first_order import constant_rate
from ctrlnet.optimise.presets import LINE_SEARCH, QUASI_NEWTON


@pytest.fixture(params=KINDS)
def problem(request):
    return problem_with(request.param)


def random_like(point, seed):
    rng = np.random.default_rng(seed)
    return like(point, [rng.standard_normal(a.shape) for a in arrays_of(point)])


def relative(one, other):
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(arrays_of(one), arrays_of(other), strict=True))


def dense(product, coordinates):
    """A matrix by its products with unit coordinates."""
    columns = [coordinates.dual_array(Enlist(product(coordinates.functions(e)))) for e in np.eye(coordinates.size)]
    return np.array(columns).T


class TestEveryAverage:
    def test_taylor_remainders_are_of_order_two_and_three(self, problem, assert_taylor, normal_function):
        point = start_of(problem)
        rng = np.random.default_rng(3)
        direction = [normal_function(p.function_space(), rng, 0.1) for p in point]
        assert_taylor(problem.reduced_functional(point), point, direction)

    def test_gradient_tangent_and_hessian_are_of_one_function(self, problem):
        point = problem.point(start_of(problem))
        layers, W, beta = point
        d, e = random_like(point, 5), random_like(point, 6)
        at = problem.average.at(layers)
        slope = at.gradient(W, beta).dot(d)
        assert at.tangent(W, beta, d) == pytest.approx(slope, rel=1e-12)
        step = 1e-5
        ahead, behind = (value_at(problem.average, point + s * d) for s in (step, -step))
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-7)
        ahead, behind = (gradient_at(problem.average, point + s * d) for s in (step, -step))
        assert relative(at.hessian(W, beta, d), (ahead + -1.0 * behind) * (0.5 / step)) < 1e-6
        assert at.hessian(W, beta, d).dot(e) == pytest.approx(at.hessian(W, beta, e).dot(d), rel=1e-11)
        for one, other in zip(
                at.layers_gradient(W, beta).arrays, at.gradient(W, beta).layers.arrays, strict=True):
            assert np.array_equal(one, other)

    def test_gauss_newton_is_j_transposed_h_j(self, problem):
        """J d by differences of the scores; d.G e = sum_i w_i (J d)_i . H_i (J e)_i."""
        average = problem.average
        point = problem.point(start_of(problem))
        layers, W, beta = point
        d, e = random_like(point, 5), random_like(point, 6)
        Jd, Je = ((average.scores(*(point + 1e-5 * v)) - average.scores(*(point + -1e-5 * v))) / 2e-5 for v in (d, e))
        rows = average.at(layers).imagewise
        assert rows.weights.sum() == pytest.approx(1.0)
        H = image_hessians(average.loss, average.scores(*point), rows.targets, rows.weights)
        found = average.at(layers).gauss_newton(W, beta, d)
        assert found.dot(e) == pytest.approx(np.einsum("ki,ikl,li->", Je, H, Jd), rel=1e-7)
        assert found.dot(d) > 0

    def test_the_projected_product_is_the_schur_complement(self, problem):
        s, b, W, beta = start_of(problem)
        functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
        functional([s, b])
        coordinates = problem.coordinates(functional.names)
        G = dense(functional.gauss_newton, coordinates)
        point = [s, b, *functional.classifier()]
        whole = JointFunctional(problem, point)
        whole(point)
        A, n = dense(whole.gauss_newton, problem.coordinates()), coordinates.size
        schur = A[:n, :n] - A[:n, n:] @ np.linalg.solve(A[n:, n:], A[n:, :n])
        assert np.abs(G - schur).max() <= 1e-10 * np.abs(G).max()
        explicit = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 10**6, 3, damping=0.0)
        explicit.refresh()
        assert np.abs(explicit.matrix - G).max() <= 1e-10 * np.abs(G).max(), "the rows of all terms, with their weights"

    def test_features_scores_and_accuracy_agree(self, problem):
        average = problem.average
        layers, W, beta = problem.point(start_of(problem))
        at = average.at(layers)
        features, scores = at.features(), average.scores(layers, W, beta)
        rows, count = at.imagewise, average.count
        assert features.weights.sum() == pytest.approx(1.0) and sorted(features.numbers) == list(range(count))
        assert np.allclose(features.weights[np.argsort(features.numbers)], rows.weights)
        assert np.allclose(W.T @ rows.features() + beta[:, None], scores, rtol=0, atol=1e-12)
        assert np.array_equal(features.targets, rows.targets[features.numbers])
        right = scores.argmax(axis=0) == rows.targets
        assert average.accuracy(layers, W, beta) == pytest.approx((right * rows.weights).sum())
        loss = average.loss.value(scores, rows.targets, rows.weights)
        assert at.value(W, beta) == pytest.approx(loss, rel=1e-12)
        chosen = np.array([1, 5, count - 1])
        part = average.among(chosen).at(layers).imagewise
        assert np.allclose(part.features(), rows.features()[:, chosen], rtol=0, atol=1e-12)
        assert np.array_equal(part.targets, rows.targets[chosen])

    def test_a_linearisation_outlives_the_states(self, problem):
        """Propagated with other controls since, it gives the same numbers again, at the cost of a propagation."""
        average, work = problem.average, problem.work
        point = problem.point(start_of(problem))
        layers, W, beta = point
        d = random_like(point, 5)
        old = average.at(layers)
        value = old.value(W, beta)
        expected = old.gradient(W, beta), old.hessian(W, beta, d), old.gauss_newton(W, beta, d)
        other = average.at((point + 0.1 * d).layers)
        other.value(W, beta)
        size = work.counts["forward"] / 2
        products = old.gradient, lambda *w: old.hessian(*w, d), lambda *w: old.gauss_newton(*w, d)
        for product, known in zip(products, expected, strict=True):
            other.value(W, beta)  # answers from what it holds, or propagates
            other.gradient(W, beta)
            before = work.copy()
            assert relative(product(W, beta), known) < 1e-13
            assert (work - before).counts["forward"] == size
        assert old.value(W, beta) == value

    def test_scores_do_not_cost_a_linearisation_its_states(self, problem):
        average, work = problem.average, problem.work
        layers, W, beta = problem.point(start_of(problem))
        at = average.at(layers)
        at.value(W, beta)
        before = work.copy()
        average.accuracy(*random_like(Point(layers, W, beta), 3))
        assert work.counts == before.counts, "scores are no training work"
        at.gradient(W, beta)
        spent = work - before
        assert spent.counts["forward"] == 0 and spent.counts["adjoint"] > 0

    @pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
    @pytest.mark.parametrize("make", [JointFunctional, ProjectedFunctional], ids=["joint", "projected"])
    def test_newton_lowers_the_objective(self, problem, make, curvature):
        start = start_of(problem)
        functional = make(problem, start[: 4 if make is JointFunctional else 2])
        solver = TaoOptimiser(functional, LINE_SEARCH, Limits(2), curvature=curvature)
        solver.solve()
        objectives = solver.history.column("objective")
        assert objectives[-1] < 0.95 * objectives[0]

    def test_quasi_newton_with_an_explicit_matrix_lowers_the_objective(self, problem):
        s, b, _, _ = start_of(problem)
        functional = ProjectedFunctional(problem, (s, b))
        coordinates = problem.coordinates(functional.names)
        initial = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 20, 2, damping=0.1)
        solver = TaoOptimiser(functional, QUASI_NEWTON, Limits(3), coordinates=coordinates, initial_hessian=initial)
        solver.solve()
        assert solver.history.last.objective < 0.9 * solver.history.iterations[0].objective

    def test_mini_batches_lower_the_objective(self, problem):
        solver = FirstOrder(
            JointFunctional(problem, start_of(problem)), np.random.default_rng(1), rate=0.03, batch=10,
            schedule=constant_rate, limits=Limits(8), evaluate_every=8)
        solver.solve()
        first, last = solver.history.iterations
        assert last.objective < 0.9 * first.objective

    def test_drawn_samples_and_the_training_of_a_level_lower_the_objective(self, problem):
        s, b, _, _ = start_of(problem)
        schedule = SampleSchedule(15, 2.0, 2)
        optimiser = StochasticOptimiser(
            ProjectedFunctional(problem, (s, b)), np.random.default_rng(1), schedule, limits=Limits(2))
        optimiser.solve()
        assert optimiser.history.last.images == len(problem.average.sample)
        assert optimiser.history.last.objective < float(ProjectedFunctional(problem, (s, b))([s, b]))
        result = cn.train_level(problem, (s, b), iterations=2)
        assert result.history.last.objective < 0.9 * result.history.iterations[0].objective


@pytest.mark.parallel(nprocs=2)
@pytest.mark.parametrize("kind", KINDS)
def test_products_and_rows_are_the_same_on_two_ranks(kind):
    found = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        problem = problem_with(kind, comm=comm)
        s, b, _, _ = start_of(problem)
        functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
        functional([s, b])
        coordinates = problem.coordinates(functional.names)
        x = np.random.default_rng(1).standard_normal(coordinates.size)
        explicit = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 10, 2)
        explicit.refresh()
        products = [coordinates.dual_array(Enlist(product(coordinates.functions(x))))
                    for product in (functional.gauss_newton, functional.hessian)]
        found.append([*products, explicit.matrix])
    for split, whole in zip(*found, strict=True):
        difference = float(np.abs(split - whole).max() / np.abs(whole).max())
        assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) < 1e-8
