"""Predictions: scores, probabilities, classes and states of inputs without targets."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, Ensemble, Function
from support.networks import blobs, small_problem
from support.ranks import assert_equal, on_ranks
from support.targets import KINDS, NODES, problem_of, start_of

import ctrlnet as cn
from ctrlnet.fields import NodalValues


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_sample(kind, monkeypatch):
    monkeypatch.setattr("ctrlnet.objective.chunks._BYTES", 1)
    problem = problem_of(kind, count=40)
    m = start_of(problem)
    prediction, sample = problem.prediction(m), problem.average.sample
    expected = problem.average.scores(*problem.point(m))
    assert np.array_equal(prediction.scores(sample.inputs), expected)
    assert np.array_equal(prediction.scores(sample.images), expected)
    few = prediction.scores(sample.images[3:5])
    assert np.allclose(few, expected[..., 3:5], rtol=0, atol=1e-13)


def test_what_scores_stand_for():
    problem = problem_of("masked classes at nodes")
    m = start_of(problem)
    prediction, images = problem.prediction(m), problem.average.sample.images
    scores, p = prediction.scores(images), prediction.probabilities(images)
    assert np.allclose(p, np.exp(scores) / np.exp(scores).sum(axis=0)) and p.shape == (3, 49, 20)
    assert np.array_equal(prediction.predict(images), scores.argmax(axis=0))
    numbers = problem_of("numbers")
    m = start_of(numbers)
    assert np.array_equal(numbers.prediction(m).predict(images), numbers.prediction(m).scores(images))
    with pytest.raises(ValueError, match="scores of LeastSquares are no probabilities"):
        numbers.prediction(m).probabilities(images)
    answers = problem_of("answers")
    m = start_of(answers)
    p = answers.prediction(m).predict(images)
    assert np.allclose(p, 1 / (1 + np.exp(-answers.prediction(m).scores(images))))


def test_a_trained_result_predicts():
    problem = small_problem()
    result = cn.train_level(problem, problem.network.control_space.random(np.random.default_rng(0), 0.3), iterations=5)
    new = blobs(30, seed=5)
    predicted = result.predict(new.images)
    assert problem.accuracy(new, result.controls) == pytest.approx((predicted == new.labels).mean())
    assert np.allclose(result.probabilities(new.images).sum(axis=0), 1.0)
    assert np.array_equal(result.predict(new.images[7:8]), predicted[7:8])


@pytest.mark.parametrize("scheme", [cn.ForwardEuler(), cn.StoermerVerlet()])
def test_a_trajectory_is_a_list_of_named_functions(scheme):
    from support.networks import small_network

    dynamics = {"StoermerVerlet": cn.Hyperbolic()}.get(type(scheme).__name__)
    problem = small_problem(network=small_network(integrator=scheme, dynamics=dynamics))
    m = problem.controls(np.random.default_rng(0), 0.3)
    network, images = problem.network, blobs(4).images
    states = problem.prediction(m).trajectory(images, 2)
    assert [s.time for s in states] == pytest.approx(np.linspace(0, 1.5, network.steps + 1))
    assert [f.name() for f in states[0].features] == ["Y0", "Y1"]
    assert all(f.function_space() == network.space for s in states for f in s.features)
    Y0 = Function(network.state_space(1))
    Y0.dat.data[:] = np.stack([f.dat.data_ro for f in states[0].features], axis=1)
    Y = cn.propagate(network, m, Y0).dat.data_ro
    assert np.allclose(Y, np.stack([f.dat.data_ro for f in states[-1].features], axis=1), rtol=0, atol=1e-13)


def test_relative_error():
    problem = problem_of("field")
    m = start_of(problem)
    sample = problem.average.sample
    mass, y = problem.network.operators.mass, sample.targets.values(0, 20)
    error = (mass[:, None] * (problem.prediction(m).scores(sample.images) - y) ** 2).sum()
    assert problem.relative_error(sample, m) == pytest.approx(np.sqrt(error / (mass[:, None] * y**2).sum()))
    classes = problem_of("classes at nodes")
    with pytest.raises(ValueError, match="Classes have no relative error. Ask for the accuracy"):
        classes.average.relative_error(*classes.point(classes.controls()))


def test_inputs_with_targets():
    """A sample's scores are those of its inputs, whatever is known of them."""
    problem = small_problem()
    prediction, sample = problem.prediction(problem.controls(np.random.default_rng(0), 0.3)), problem.average.sample
    assert np.array_equal(prediction.scores(sample), prediction.scores(sample.inputs))
    assert np.array_equal(prediction.predict(sample), prediction.predict(sample.images))


def test_what_is_refused():
    problem = small_problem()
    prediction = problem.prediction(problem.controls())
    with pytest.raises(ValueError, match="inputs 0 to 3, received number=4"):
        prediction.trajectory(blobs(4).images, 4)
    with pytest.raises(ValueError, match=r"2 channel\(s\), the network opens 1"):
        prediction.scores(NodalValues(problem.network.space, np.zeros((3, 2, 49))))
    huge = problem.controls(np.random.default_rng(0), 1e200)
    with pytest.raises(cn.PropagationError, match="not finite"), np.errstate(all="ignore"):
        grow = cn.Network(problem.network.operators, problem.network.control_space, dynamics=cn.Residual(cn.identity))
        cn.TrainingProblem(problem.readout.on(grow), blobs(4)).prediction(huge).scores(blobs(4).images)


def numbers(kind, comm, count, ensemble=None):
    problem = problem_of(kind, comm=comm, ensemble=ensemble)
    scores = problem.prediction(start_of(problem)).scores(blobs(count).images)
    if kind in NODES:  # of this rank's nodes: their sums
        mass = problem.network.operators.mass
        scores = comm.allreduce(np.einsum("n,kni->ki", mass, scores))
    return {"scores": scores}


@on_ranks
@pytest.mark.parametrize("kind", ["weighted classes", "field"])
def test_the_same_scores_on_any_number_of_ranks(kind):
    assert_equal(numbers(kind, COMM_WORLD, 7), numbers(kind, COMM_SELF, 7))


@pytest.mark.parallel(nprocs=3)
def test_one_image_on_several_ensemble_members():
    ensemble = Ensemble(COMM_WORLD, 1)
    for count in (1, 2, 5):
        split = numbers("weighted classes", ensemble.comm, count, ensemble)
        assert_equal(split, numbers("weighted classes", COMM_SELF, count))
