"""Copies: what cannot be pickled says what to do instead; NumPy's integers go into files."""

import copy
import pickle

import numpy as np
import pytest
from support.networks import small_problem

import ctrlnet as cn
from ctrlnet.storage import Checkpoint


@pytest.mark.parametrize("what", ["network", "operators", "control space", "readout", "problem"])
def test_pickles_and_deep_copies_are_refused_and_shallow_ones_share(what):
    problem = small_problem(count=10)
    network = problem.network
    thing = {"network": network, "operators": network.operators, "control space": network.control_space,
             "readout": problem.readout, "problem": problem}[what]
    for attempt in (pickle.dumps, copy.deepcopy, lambda x: pickle.dumps({"mine": [x]})):
        with pytest.raises(TypeError, match=r"neither be pickled nor deep-copied.*ctrlnet\.save"):
            attempt(thing)
    assert vars(copy.copy(thing)) == vars(thing)


def test_numpy_integers_are_integers(tmp_path):
    one, two, three = np.int64(1), np.int32(2), np.uint8(3)
    given = small_problem(count=10)
    operators = given.network.operators
    controls = cn.ControlSpace(1.5, three, operators, two, degree=np.int64(0), refinements=one)
    readout = cn.Readout(cn.Network(operators, controls, steps=np.int64(6)), three, given.readout.space)
    problem = cn.TrainingProblem(readout, given.average.sample, weights_size=1e-2, memory_limit=np.int64(2**20))
    result = cn.train_level(
        problem, problem.controls(np.random.default_rng(0)), iterations=two,
        checkpoint=Checkpoint(tmp_path / "run.h5", iterations=one))
    trained = cn.load(result.save(tmp_path / "net.h5"))
    assert trained.network.steps == 6 and trained.network.features == 2
    cn.train_multiscale([problem, problem], result.controls, iterations=np.array([1, 2]))
    cn.Operators(operators.space, [cn.derivative(one), cn.second_derivative(np.int64(0), one)]).matrices  # noqa: B018
