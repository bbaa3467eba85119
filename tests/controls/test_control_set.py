"""The set of controls: three views of the same numbers, and Functions of other spaces refused by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from firedrake import COMM_WORLD, Cofunction, Function, FunctionSpace, VectorFunctionSpace
from pyadjoint.enlisting import Enlist
from support.networks import small_network, small_problem, square

import ctrlnet as cn
from ctrlnet.controls import Coordinates, ReplicatedPart
from ctrlnet.optimise import JointFunctional, ProjectedFunctional

LEARNED = dict(dynamics=cn.ReactionDiffusion(0.4, learned=True), integrator=cn.IMEX())
NAMES = ("s", "b", "log_diffusivity", "W", "beta")


@pytest.fixture(scope="module")
def problem():
    return small_problem(network=small_network(**LEARNED), control_scales=[1.0, 2.0, 0.5, 3.0])


def random_arrays(control_set, seed=0):
    rng = np.random.default_rng(seed)
    return {part.name: rng.standard_normal((part.rows, part.components)) for part in control_set}


def check_round_trips(problem):
    """Arrays, Functions and coordinates are three views of the same numbers, arrays the same on every rank."""
    given = random_arrays(problem.control_set)
    m = problem.control_set.functions(given)
    duals = problem.control_set.cofunctions(given)
    for back in (problem.control_set.arrays(m), problem.control_set.dual_arrays(duals)):
        for name, values in given.items():
            np.testing.assert_array_equal(back[name], values, err_msg=name)
    for coordinates in (problem.coordinates(time_scale=0.3), problem.coordinates(euclidean=True)):
        x = coordinates.array(m)
        assert all(np.array_equal(x, other) for other in COMM_WORLD.allgather(x))
        for name, values in problem.control_set.arrays(coordinates.functions(x)).items():
            np.testing.assert_allclose(values, given[name], rtol=0, atol=1e-11, err_msg=name)
    assert np.array_equal(x, np.concatenate([a.ravel() for a in given.values()])), "Euclidean: the numbers themselves"


def test_views_round_trip(problem):
    assert problem.control_set.names == NAMES
    check_round_trips(problem)


@pytest.mark.parallel(nprocs=[2, 3])
def test_views_round_trip_on_ranks():
    check_round_trips(small_problem(network=small_network(**LEARNED)))


@pytest.mark.parallel(nprocs=[2, 3])
def test_a_distributed_control_is_written_where_its_nodes_are():
    """Each rank's part of a Function is the rows of the array that start at its first."""
    part = small_problem().control_set["W"]
    values = random_arrays([part])["W"]
    W = Function(part.space)
    part.write(W, values)
    own = W.dat.data_ro
    np.testing.assert_array_equal(own, values[part.first : part.first + len(own)])
    assert sum(COMM_WORLD.allgather(len(own))) == part.rows == part.space.dim() // part.components


def test_coordinates_are_orthonormal_in_the_metric(problem):
    """|x|^2 is the sum of omega^2 u^T M u, and a derivative's product with m that of their coordinates."""
    m = problem.control_set.functions(random_arrays(problem.control_set))
    g = problem.control_set.cofunctions(random_arrays(problem.control_set, 1))
    coordinates = problem.coordinates(time_scale=0.3)
    x, y, R = coordinates.array(m), coordinates.dual_array(g), problem.regularisation
    expected = 0.0
    for name, u in problem.control_set.arrays(m).items():
        product = R.metric(NAMES, 0.3).get(name)
        scaled = u if product is None or product.scales is None else u * product.scales
        expected += np.sum(scaled * (scaled if product is None else product.matrix @ scaled))
    np.testing.assert_allclose(x @ x, expected, rtol=1e-12)
    product = sum(f.dat.data_ro.ravel() @ d.dat.data_ro.ravel() for f, d in zip(m, g, strict=True))
    np.testing.assert_allclose(x @ y, product, rtol=1e-12)


def test_controls_are_a_tuple_with_names(problem):
    m = problem.controls(np.random.default_rng(0))
    s, b, r, W, beta = m
    assert m["W"] is m.W is m[3] is W and m.log_diffusivity is r and list(Enlist(m)) == [s, b, r, W, beta]
    assert m.restricted(("W", "s")) == (W, s) and m.restricted(NAMES) is m
    other = Function(b.function_space())
    assert m.replace(b=other) == (s, other, r, W, beta) and m.b is b
    assert m.restricted(("s", "b")).extended(m.restricted(("W",))).names == ("s", "b", "W")
    assert copy.copy(m).by_name() == m.by_name()
    with pytest.raises(AttributeError, match=r"do not change; for others take replace\(b=\.\.\.\)"):
        m.b = other
    with pytest.raises(AttributeError, match="These controls are s, b, log_diffusivity, W, beta; there is no 'c'"):
        _ = m.c
    with pytest.raises(KeyError, match="there is no 'c' among them"):
        m["c"]
    with pytest.raises(ValueError, match="There is no control c to replace"):
        m.replace(c=other)
    with pytest.raises(ValueError, match="control c is missing; these are s"):
        m.restricted(["s", "c"])
    with pytest.raises(ValueError, match="one name each, all different; received 2 Functions and the names s, s"):
        cn.Controls(("s", "s"), (s, b))


def test_what_stands_for_controls(problem):
    """Controls, a mapping and the Functions in order mean the same; others besides do no harm where they have names."""
    m = problem.controls(np.random.default_rng(0))
    in_time = problem.network.control_set
    for given in (m, m.by_name(), dict(reversed(m.by_name().items())), m[:3], list(m[:3]), m.restricted(NAMES[:3])):
        assert in_time.controls(given) == m[:3] and in_time.controls(given).names == NAMES[:3]
    assert problem.with_classifier(m[:3])[:3] == m[:3] and problem.with_classifier(m) == m
    filled = problem.control_set.filled([None, m.b, None, None, None])
    assert filled.b is m.b and not filled.W.dat.data_ro.any()


def test_learned_parameters_are_controls_with_names(problem):
    """They are scalar functions of time, weighed as the biases are, and the layers' last part."""
    space = problem.network.control_space
    m = space.random(np.random.default_rng(0))
    m.log_diffusivity.dat.data[:] = [1.0, 2.0, 3.0]
    assert m.names == NAMES[:3] and m.log_diffusivity.function_space().value_size == 1
    layers = problem.network.layers(m)
    np.testing.assert_array_equal(np.sort(layers.parameters, axis=0), [[1.0], [2.0], [3.0]])
    g = problem.network.cofunctions(layers)
    for name in m.names:
        np.testing.assert_allclose(g[name].dat.data_ro, m[name].dat.data_ro, err_msg="one step a cell: E^T E = 1")
    dt, R = space.T / space.cells, problem.regularisation
    assert R.value({"log_diffusivity": problem.network.control_set.arrays(m)["log_diffusivity"]}) == pytest.approx(
        0.5 * 1e-3 * dt * 14.0)
    assert sorted(space.prolong(m, space.finer()).log_diffusivity.dat.data_ro) == [1, 1, 2, 2, 3, 3]


def others(m):
    """Controls of which one is in another space, and what the message must name."""
    r = m.log_diffusivity
    longer = cn.ControlSpace(9.0, 3, 4, 2, parameters=("log_diffusivity",)).zero()
    finer = cn.ControlSpace(1.5, 6, 4, 2, parameters=("log_diffusivity",)).zero()
    linear = cn.ControlSpace(1.5, 3, 4, 2, degree=1, parameters=("log_diffusivity",)).zero()
    elsewhere = VectorFunctionSpace(square(2), "CG", 1, dim=6)
    return {
        "another final time": (m.replace(s=longer.s), r"control s must be .*\[0, 1.5\].*received .*\[0, 9\]"),
        "other cells": (m.replace(b=finer.b), r"control b must be .*with 3 cells.*received .*with 6 cells"),
        "another degree": (m.replace(s=linear.s), r"s must be .*Discontinuous Lagrange 0.*received .*Lagrange 1"),
        "a scalar for a vector": (m.replace(b=r), "b must be .*with 2 components.*received .*with 1 components"),
        "another mesh": (m.replace(W=Function(elsewhere)), r"control W must be .*\(9 nodes.*received .*\(9 nodes"),
        "a Cofunction": (m.replace(s=Cofunction(m.s.function_space().dual())), "s must be .*received Cofunction"),
        "an array": (m.replace(beta=np.zeros(3)), "control beta must be a Function in .*; received ndarray"),
    }


@pytest.mark.parametrize("case", [
    "another final time", "other cells", "another degree", "a scalar for a vector", "another mesh", "a Cofunction",
    "an array"])
def test_functions_of_other_spaces_are_refused_by_name(problem, case):
    """Before a kernel sees them, whatever is asked for; both spaces are named."""
    m, message = others(problem.controls())[case]
    Y0 = Function(problem.network.state_space(1))
    calls = [lambda: problem.functional(m), lambda: problem.point(m), lambda: problem.reduced_functional(m),
             lambda: JointFunctional(problem, m), lambda: ProjectedFunctional(problem, m),
             lambda: problem.coordinates().array(m), lambda: cn.train_level(problem, m, iterations=0)]
    if case not in ("another mesh", "an array"):
        calls.append(lambda: cn.propagate(problem.network, m, Y0))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_counts_and_names_are_refused(problem):
    m = problem.controls()
    with pytest.raises(ValueError, match=r"The controls are s, b, log_diffusivity; received 2 Functions instead"):
        cn.propagate(problem.network, m[:2], Function(problem.network.state_space(1)))
    with pytest.raises(ValueError, match=r"controls are s, .* or s, .*, W, beta; received 4 Functions"):
        ProjectedFunctional(problem, m[:4])
    with pytest.raises(ValueError, match="control b is missing; these are s, c, log_diffusivity"):
        problem.network.layers({"s": m.s, "c": m.b, "log_diffusivity": m.log_diffusivity})
    with pytest.raises(ValueError, match="control W, beta is missing"):
        problem.functional(m.restricted(NAMES[:3]))
    with pytest.raises(ValueError, match="Controls are named s, b, log_diffusivity, W, beta; received \\['kernel'\\]"):
        problem.coordinates(["kernel"])
    space = FunctionSpace(square(2), "CG", 1)
    for names in (("a", "a"), ("replace", "a")):
        with pytest.raises(ValueError, match="Controls need different names, none of .*replace.*; received"):
            cn.ControlSet([ReplicatedPart(name, space) for name in names])


def test_numpy_integers_are_integers():
    space = cn.ControlSpace(1.0, np.int64(3), np.int64(4), np.int32(2), np.int64(1), np.int64(1))
    assert (space.cells, space.operators, space.features, space.finer().cells) == (3, 4, 2, 6)
    with pytest.raises(ValueError, match=r"needs a whole number of cells, received 2\.5"):
        cn.ControlSpace(1.0, 2.5, 4, 2)


def test_a_metric_must_be_positive_definite(problem):
    with pytest.raises(ValueError, match="metric's matrix must be positive definite; its least eigenvalue"):
        problem.coordinates(["W"], weights_matrix=np.zeros((9, 9)))
    assert Coordinates(problem.control_set, {}, {}).size == problem.coordinates().size
