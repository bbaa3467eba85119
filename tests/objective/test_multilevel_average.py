"""One network for every scale: the average over meshes against its parts, its derivatives, and its optimisers."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace
from mpi4py import MPI
from support.networks import blobs, small_network, square
from support.points import arrays_of, gradient_at, hessian_at, like, value_at

import ctrlnet as cn
from ctrlnet.fields import AugmentedSample, Shift, averaged_pixels
from ctrlnet.optimise import JointFunctional, Limits, ProjectedFunctional, TaoOptimiser
from ctrlnet.optimise.first_order import FirstOrder, warm_cosine_rate

CELLS = (6, 3, 2)
WEIGHTS = (0.5, 0.3, 0.2)


def levels(count=40, comm=COMM_WORLD, rng=None, sample=None):
    """A problem over three meshes with one readout space, and its controls."""
    network = small_network(CELLS[0], comm=comm)
    readout = cn.Readout(network, 3, FunctionSpace(square(2, comm=comm), "CG", 1))
    work, sample, averages = cn.Work(), blobs(count) if sample is None else sample, []
    for cells in CELLS:
        V = network.space if cells == CELLS[0] else FunctionSpace(square(cells, comm=comm), "CG", 1)
        on = readout if cells == CELLS[0] else readout.on(network.on(V))
        averages.append(cn.SampleAverage(on, sample, work=work, projection=averaged_pixels(V, (6, 6), 6 // cells)))
    problem = cn.TrainingProblem(
        readout, sample, control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2, work=work)
    return problem.with_average(cn.MultilevelAverage(averages, WEIGHTS, rng))


def point_of(problem, seed=0):
    s, b, W, beta = problem.controls(np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    problem.readout.control_set["W"].write(W, 0.1 * rng.standard_normal((problem.readout.features, 3)))
    beta.dat.data[:] = [[0.1, -0.2, 0.3]]
    return s, b, W, beta


def test_value_and_derivatives_are_weighted_means_of_the_levels():
    problem = levels()
    average = problem.average
    point = problem.point(point_of(problem))
    rng = np.random.default_rng(5)
    direction = like(point, [rng.standard_normal(p.shape) for p in arrays_of(point)])
    parts = average.averages
    mean = sum(w * value_at(a, point) for w, a in zip(WEIGHTS, parts, strict=True))
    assert value_at(average, point) == pytest.approx(mean)
    for of in (gradient_at, lambda a, at: hessian_at(a, at, direction)):
        found = arrays_of(of(average, point))
        expected = [arrays_of(of(a, point)) for a in parts]
        for k, array in enumerate(found):
            assert np.allclose(array, sum(w * e[k] for w, e in zip(WEIGHTS, expected, strict=True)), atol=1e-14)
    at = average.at(point.layers)
    assert all(np.array_equal(one, other) for one, other in zip(
        at.layers_gradient(point.W, point.beta).arrays, gradient_at(average, point).layers.arrays, strict=True))
    pairs = zip(arrays_of(gradient_at(average, point)), arrays_of(direction), strict=True)
    slope = sum(float((g * d).sum()) for g, d in pairs)
    assert at.tangent(point.W, point.beta, direction) == pytest.approx(slope, rel=1e-12)
    features = at.features()
    assert features.values.shape[1] == 3 * 40 and features.weights.sum() == pytest.approx(1.0)
    assert len(set(features.numbers)) == 120
    assert average.accuracy(*point) == pytest.approx(np.dot(WEIGHTS, average.accuracies(*point)))


def test_a_level_drawn_for_each_chunk_has_the_mean_as_its_expectation():
    problem = levels(count=45)
    point = problem.point(point_of(problem))
    exact = gradient_at(problem.average, point).layers.coefficients
    rng = np.random.default_rng(0)
    draws = [problem.average.drawn(rng, chunk=10) for _ in range(60)]
    assert all(sum(len(a.sample) for a in d.averages) == 45 and d.weights.sum() == pytest.approx(1) for d in draws)
    assert len({tuple(len(a.sample) for a in d.averages) for d in draws}) > 5
    gradients = np.array([gradient_at(d, point).layers.coefficients.ravel() for d in draws])
    error = np.linalg.norm(gradients.mean(axis=0) - exact.ravel())
    spread = np.sqrt(gradients.var(axis=0).sum() / len(draws))
    assert error < 3 * spread and spread > 0
    again = problem.average.drawn(np.random.default_rng(0), chunk=10)
    assert value_at(again, point) == value_at(draws[0], point), "one seed, one draw"


@pytest.mark.parametrize("kind", ["all levels", "drawn"])
def test_the_reduced_functional_passes_taylor_tests(kind, assert_taylor, normal_function):
    problem = levels()
    if kind == "drawn":
        problem = problem.with_average(problem.average.drawn(np.random.default_rng(1), chunk=8))
    point = list(point_of(problem))
    rng = np.random.default_rng(3)
    direction = [normal_function(p.function_space(), rng, 0.1) for p in point]
    assert_taylor(problem.reduced_functional(point), point, direction)


def test_the_projected_functional_over_all_levels(assert_taylor, normal_function):
    """One classifier in one readout space serves all levels, so it can be eliminated from all of them at once."""
    problem = levels()
    s, b, W, beta = point_of(problem)
    functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
    rng = np.random.default_rng(3)
    direction = [normal_function(p.function_space(), rng, 0.1) for p in (s, b)]
    assert_taylor(functional, [s, b], direction)
    joint = problem.reduced_functional([s, b, *functional.classifier()])
    functional([s, b])
    joint = problem.reduced_functional([s, b, *functional.classifier()])
    best = joint([s, b, *functional.classifier()])
    assert functional([s, b]) == pytest.approx(best, rel=1e-10)
    assert max(np.abs(g.dat.data_ro).max() for g in joint.derivative()[2:]) < 1e-5, "W is at its minimum"
    first = float(functional([s, b]))
    solver = TaoOptimiser(functional, limits=Limits(iterations=8))
    solver.solve()
    assert solver.history.last.objective < 0.8 * first


def test_mini_batches_draw_a_level_each():
    rng = np.random.default_rng(0)
    problem = levels(count=60, rng=rng)
    solver = FirstOrder(
        JointFunctional(problem, point_of(problem)), rng, rate=0.03, batch=10, schedule=warm_cosine_rate,
        limits=Limits(iterations=30), evaluate_every=30)
    found = solver.solve()
    first, last = solver.history.iterations
    assert last.objective < 0.5 * first.objective
    arrays = problem.point(found)
    assert min(problem.average.accuracies(*arrays)) > 0.6, "twice the chance of three classes"
    with pytest.raises(ValueError, match="draw a level each"):
        levels().average.over(np.arange(3))


def test_the_objective_of_a_part_can_stand_for_the_record():
    rng = np.random.default_rng(0)
    problem = levels(count=60, rng=rng)
    few = cn.MultilevelAverage([
        cn.SampleAverage(part.readout, blobs(12), work=problem.work,
                         projection=averaged_pixels(part.network.space, (6, 6), 6 // cells))
        for cells, part in zip(CELLS, problem.average.averages, strict=True)], WEIGHTS)
    solver = FirstOrder(
        JointFunctional(problem, point_of(problem)), rng, batch=20, limits=Limits(iterations=1), recorded=few)
    solver.solve()
    start = value_at(few, problem.point(point_of(problem)))
    assert solver.history.iterations[0].loss == pytest.approx(start, rel=1e-12)
    assert warm_cosine_rate(0.0) == 0.0 and warm_cosine_rate(0.1) == 1.0 and warm_cosine_rate(1.0) == 0.0


def test_levels_that_do_not_belong_together_are_refused():
    average = levels().average
    other = levels().average.averages[1]
    with pytest.raises(ValueError, match="at least one level"):
        cn.MultilevelAverage([])
    with pytest.raises(ValueError, match="Levels 0 and 1 differ in their control space, readout space, work counter"):
        cn.MultilevelAverage([average.averages[0], other])
    for weights in ([1.0], [1.0, -1.0, 1.0], [1.0, np.nan, 1.0]):
        with pytest.raises(ValueError, match="3 levels need as many positive weights"):
            cn.MultilevelAverage(average.averages, weights)
    with pytest.raises(ValueError, match="at least one image, received chunk=0"):
        average.drawn(np.random.default_rng(0), chunk=0)


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_numbers_on_any_number_of_ranks():
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        rng = np.random.default_rng(2)
        sample = AugmentedSample(blobs(40), [Shift(1)], rng)
        problem = levels(comm=comm, rng=rng, sample=sample)
        s, b, W, beta = problem.controls(np.random.default_rng(0))
        value = value_at(problem.average, problem.point((s, b, W, beta)))
        drawn = problem.average.drawn(np.random.default_rng(1), chunk=8)
        slope = gradient_at(drawn, problem.point((s, b, W, beta))).beta
        functional = ProjectedFunctional(problem, (s, b))
        projected = float(functional([s, b]))
        gradient = functional.derivative()[0].dat.data_ro.copy().ravel()
        # Adam goes by components: the coordinates must not depend on how a mesh's nodes are numbered.
        solver = FirstOrder(
            JointFunctional(problem, (s, b, W, beta)), rng, batch=10, limits=Limits(iterations=2),
            coordinates=problem.coordinates(weights_matrix=np.eye(problem.readout.space.dim())))
        trained = solver.solve()
        found.append(np.concatenate([
            [value, projected, solver.history.last.objective], slope, gradient, trained[0].dat.data_ro.ravel()]))
    error = np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()
    assert COMM_WORLD.allreduce(float(error), op=MPI.MAX) < 1e-10
    assert isinstance(trained[0], Function)
