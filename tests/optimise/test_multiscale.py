"""Multiscale training: levels, depth, prolonged classifiers."""

import numpy as np
import pytest
from firedrake import FunctionSpace, SpatialCoordinate, as_vector
from support.networks import blobs, small_network, small_problem, square

import ctrlnet as cn


def levels(cells=(2, 3, 6), **settings):
    network = small_network(cells[-1], **settings)
    problems = []
    for count in cells:
        on_level = network.on(FunctionSpace(square(count), "CG", 1))
        readout = cn.Readout(on_level, 3)
        sample = blobs(60).averaged(6 // count)
        problems.append(cn.TrainingProblem(readout, sample, weights_gradient=1e-2, weights_size=1e-2))
    return problems


def test_each_level_starts_from_the_controls_and_the_prolonged_classifier_of_the_one_before():
    problems = levels()
    s, b, _, _ = problems[0].controls(np.random.default_rng(0))
    seen = []
    results = cn.train_multiscale(
        problems, (s, b), iterations=[3, 2, 1], callback=lambda level, i: seen.append((level, i.number)))
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    for before, after in zip(results, results[1:], strict=False):
        again = cn.train_level(after.problem, before.controls[:2], iterations=0)
        assert again.history.last.objective == pytest.approx(after.history.iterations[0].objective, rel=1e-8)
    assert [r.problem.network.operators.nodes for r in results] == [9, 16, 49]
    assert all(r.work.total > 0 for r in results)
    assert results[-1].problem.accuracy(blobs(60), results[-1].controls) > 0.9


def test_secants_go_on_to_the_next_level():
    """On two levels with one mesh, the second continues the first as if it had not been interrupted."""
    network = small_network()
    whole, first, second = (small_problem(network=network) for _ in range(3))
    s, b, _, _ = whole.controls(np.random.default_rng(0))
    course = [i.objective for i in cn.train_level(whole, (s, b), iterations=7).history.iterations]
    carried = cn.train_multiscale([first, second], (s, b), iterations=[4, 3], carry_secants=True)
    seen = [[i.objective for i in result.history.iterations] for result in carried]
    assert [i.number for i in carried[1].history.iterations] == [0, 1, 2, 3]
    np.testing.assert_allclose(seen[0], course[:5], rtol=1e-10)
    np.testing.assert_allclose(seen[1], course[4:], rtol=1e-6)
    afresh = cn.train_multiscale([first, second], (s, b), iterations=[4, 3])[1].history.last.objective
    assert afresh > seen[1][-1] * (1 + 1e-4), "without them the second level begins with the gradient"


def test_secants_stay_behind_where_the_controls_change():
    """More control cells, or another weight of the operators: a level starts afresh, and says nothing else."""
    shallow = small_network(layers=2)
    deep = shallow.with_depth(shallow.control_space.finer(), steps=4)
    weighed = [small_problem(network=shallow), small_problem(network=shallow, control_scales=[1.0, 2.0, 2.0, 3.0])]
    for problems in ([small_problem(network=shallow), small_problem(network=deep)], weighed):
        s, b, _, _ = problems[0].controls(np.random.default_rng(0))
        last = [cn.train_multiscale(problems, (s, b), iterations=[3, 3], carry_secants=carry)[1].history.last.objective
                for carry in (False, True)]
        assert last[0] == pytest.approx(last[1], rel=1e-10)


def test_a_classifier_keeps_its_field_when_it_is_prolonged():
    coarse, fine = (p.readout for p in levels((3, 6)))
    W, beta = coarse.zero()
    x, y = SpatialCoordinate(coarse.space.mesh())
    W.interpolate(as_vector([(k + 1) * x - k * y for k in range(6)]))
    beta.dat.data[:] = [[1.0, 2.0, 3.0]]
    finer, bias = coarse.prolong((W, beta), fine)
    x, y = SpatialCoordinate(fine.space.mesh())
    expected = fine.zero()[0].interpolate(as_vector([(k + 1) * x - k * y for k in range(6)]))
    assert np.abs(finer.dat.data_ro - expected.dat.data_ro).max(initial=0.0) < 1e-10
    assert np.array_equal(bias.dat.data_ro, beta.dat.data_ro)


def test_depth_grows_with_the_levels():
    network = small_network(6, layers=2)
    deep = network.with_depth(network.control_space.finer(), steps=4)
    problems = [small_problem(network=network), small_problem(network=deep)]
    s, b, _, _ = problems[0].controls(np.random.default_rng(0))
    shallow, deeper = cn.train_multiscale(problems, (s, b), iterations=[2, 0])
    assert deeper.problem.network.steps == 4
    coarse = network.layers(shallow.controls).coefficients
    fine = deep.layers(deeper.controls).coefficients
    assert np.allclose(fine, np.repeat(coarse, 2, axis=0)), "the same function of time"


def test_levels_that_do_not_fit_are_refused_before_any_training():
    problem = small_problem()
    other = small_problem(network=small_network(6, features=3))
    s, b, _, _ = problem.controls()
    with pytest.raises(ValueError, match="3 features; the one before has.*2. Use the same ControlSpace"):
        cn.train_multiscale([problem, other], (s, b))
    with pytest.raises(ValueError, match="at least one level"):
        cn.train_multiscale([], (s, b))
    with pytest.raises(ValueError, match="1 levels need as many iteration limits, received 2"):
        cn.train_multiscale([problem], (s, b), iterations=[1, 2])
    assert problem.work.total == 0


def test_work_is_counted_in_images_times_nodes_times_layers():
    problem = small_problem(count=60)
    s, b, W, beta = problem.controls(np.random.default_rng(0))
    arrays = problem.point((s, b, W, beta))
    at, (_, W, beta) = problem.average.at(arrays.layers), arrays
    at.value(W, beta)
    sample = (60, problem.network.operators.nodes, problem.network.steps)
    assert problem.work.units(*sample) == 1
    at.gradient(W, beta)
    assert problem.work.units(*sample) == 3, "an adjoint sweep costs two forward sweeps; the trajectory is kept"
    at.hessian(W, beta, arrays)
    assert problem.work.units(*sample) == 3 + 2 + 5
