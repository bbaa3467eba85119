"""Functions of every wrong space are refused by name wherever controls enter, before anything is computed."""

import numpy as np
import pytest
from firedrake import COMM_SELF, Function, FunctionSpace, VectorFunctionSpace
from support.networks import blobs, small_network, small_problem, square

import ctrlnet as cn
from ctrlnet.optimise import JointFunctional, ProjectedFunctional

PROBLEM = None


def problem():
    global PROBLEM
    PROBLEM = PROBLEM or small_problem(count=6)
    return PROBLEM


def in_time(T=1.5, cells=3, operators=4, features=2, degree=0):
    return cn.ControlSpace(T, cells, operators, features, degree=degree).zero()


def of_problem(network=None, classes=3, cells=2, family="CG", degree=1):
    network = network or problem().network
    readout = cn.Readout(network, classes, FunctionSpace(square(cells), family, degree))
    return readout.zero()


def on_the_mesh(name, family, degree, dim):
    space = problem().controls()[name].function_space()
    return Function(VectorFunctionSpace(space.mesh(), family, degree, dim=dim))


# (name of the control, a Function of a space that is not its own)
WRONG = {
    "deeper": ("s", lambda: problem().network.control_space.finer().zero().s),
    "a space of its own that is alike": ("s", lambda: in_time().s),
    "another final time": ("s", lambda: in_time(T=9.0).s),
    "more cells": ("b", lambda: in_time(cells=6).b),
    "continuous in time": ("s", lambda: in_time(degree=1).s),
    "fewer operators": ("s", lambda: in_time(operators=3).s),
    "more features": ("b", lambda: in_time(features=3).b),
    "b in the place of s": ("s", lambda: problem().controls().b),
    "another degree on the same mesh": ("s", lambda: on_the_mesh("s", "CG", 1, 16)),
    "another shape on the same mesh": ("b", lambda: on_the_mesh("b", "DG", 0, 3)),
    "a classifier on another mesh": ("W", lambda: of_problem(cells=3).W),
    "a classifier of another network": ("W", lambda: of_problem(small_network()).W),
    "a classifier of another degree": ("W", lambda: of_problem(family="DG", degree=0).W),
    "a classifier of more classes": ("W", lambda: of_problem(classes=4).W),
    "biases of more classes": ("beta", lambda: of_problem(classes=4).beta),
    "a state as a classifier": ("W", lambda: Function(problem().network.state_space(1))),
    "numbers in the place of time": ("b", lambda: problem().controls().beta),
}


def projected(m):
    functional = ProjectedFunctional(problem(), m)
    return functional(list(functional.controls))


CALLS = {
    "functional": lambda m: problem().functional(m),
    "reduced_functional": lambda m: problem().reduced_functional(m),
    "JointFunctional": lambda m: JointFunctional(problem(), m),
    "ProjectedFunctional": projected,
    "train_level": lambda m: cn.train_level(problem(), m, iterations=1),
    "train_multiscale": lambda m: cn.train_multiscale([problem()], m, iterations=1),
    "accuracy": lambda m: problem().accuracy(blobs(6), m),
    "prediction": lambda m: problem().prediction(m).scores(blobs(6)),
    "prolong": lambda m: problem().readout.prolong(m, of_target()),
    "save": lambda m: cn.save("/dev/null/never.h5", problem(), m),
}


def of_target():
    return cn.Readout(problem().network, 3, FunctionSpace(square(4), "CG", 1))


@pytest.mark.parametrize(("wrong", "call"), [
    (wrong, call) for wrong, (name, _) in WRONG.items() for call in CALLS
    if call != "prolong" or name in ("W", "beta")])  # which takes the classifier alone
def test_a_wrong_space_is_refused_by_name(wrong, call):
    name, make = WRONG[wrong]
    m = problem().controls(np.random.default_rng(0), 0.1)
    with pytest.raises(ValueError, match=rf"The control {name} must be in the space of .*received a Function in the "):
        CALLS[call](m.replace(**{name: make()}) if name in m.names else m)


@pytest.mark.parametrize("wrong", [n for n, (name, _) in WRONG.items() if name in ("s", "b")])
def test_propagation_refuses_it_too(wrong):
    name, make = WRONG[wrong]
    network = problem().network
    m, Y0 = network.control_space.zero(), Function(network.state_space(2))
    with pytest.raises(ValueError, match=rf"The control {name} must be in the space of"):
        cn.propagate(network, m.replace(**{name: make()}), Y0)


@pytest.mark.parametrize("space", [
    lambda n: VectorFunctionSpace(n.space.mesh(), "CG", 1, dim=3), lambda n: VectorFunctionSpace(square(6), "CG", 1),
    lambda n: VectorFunctionSpace(n.space.mesh(), "CG", 2, dim=4), lambda n: n.space,
    lambda n: VectorFunctionSpace(square(6, comm=COMM_SELF), "CG", 1, dim=4)],
    ids=["3 components", "another mesh", "another degree", "scalar", "one rank's"])
def test_states_of_other_spaces_are_refused(space):
    network = problem().network
    with pytest.raises(ValueError, match=r"Y0 (lives on|has \d+ component).*Use network\."):
        cn.propagate(network, network.control_space.zero(), Function(space(network)))


@pytest.mark.parametrize("quadrilateral", [True, False])
def test_a_readout_without_a_lumped_mass_is_refused(quadrilateral):
    with pytest.raises(ValueError, match="spaces of degree 0 and 1 have; received .*FunctionSpace"):
        cn.Readout(problem().network, 3, FunctionSpace(square(2, quadrilateral), "CG", 2))
