"""Steps of unequal size: values by the UFL reading, all derivatives, training with any memory, files."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD
from support.derivatives import check_derivatives, check_derivatives_whatever_the_memory
from support.networks import small_network, small_problem
from support.ranks import assert_equal, build_network, on_ranks, propagation_numbers, smooth

import ctrlnet as cn
from ctrlnet.integrators import heun
from ctrlnet.network.plain import layer_controls, propagate_plain

TIGHT = {"snes_rtol": 1e-13, "snes_atol": 1e-13}
PAIRS = {
    "euler": (cn.Residual(), cn.ForwardEuler()), "heun": (cn.Parabolic(), cn.RungeKutta(heun)),
    "verlet": (cn.Hyperbolic(), cn.StoermerVerlet()), "imex": (cn.ReactionDiffusion(0.2), cn.IMEX()),
    "backward": (cn.Residual(), cn.BackwardEuler(TIGHT))}
TIMES = [0.0, 0.02, 0.09, 0.15]


def case_of(make_case, scheme, **settings):
    dynamics, integrator = PAIRS[scheme]
    case = make_case("triangle", dynamics=dynamics, integrator=integrator, layers=2, cells=2, degree=1,
                     control_cells=2, images=2, T=0.15, **settings)
    case.network = case.network.with_depth(steps=TIMES)
    return case


@pytest.mark.parametrize("scheme", PAIRS)
def test_value_and_derivatives(make_case, annotation, assert_taylor, scheme):
    case = case_of(make_case, scheme)
    mine = cn.propagate(case.network, case.m, case.Y0).dat.data_ro
    if scheme != "backward":  # a nonlinear stage has no reading
        plain = propagate_plain(case.network, *layer_controls(case.network, case.m), case.Y0).dat.data_ro
        np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-10 * np.abs(plain).max())
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize("scheme", PAIRS)
def test_steps_follow_each_other(scheme):
    """With controls that are constant in time, all steps at once are each step alone, one after the other."""
    dynamics, integrator = PAIRS[scheme]
    network = small_network(layers=1, T=0.15, dynamics=dynamics, integrator=integrator)
    m = network.control_space.random(np.random.default_rng(0), 0.3)
    trajectory = network.sweep.trajectory(3, network.sweep.image_block)
    trajectory.initial[:, :, 0] = np.random.default_rng(1).random(trajectory.initial.shape[:2])
    unequal = network.with_depth(steps=TIMES)
    layers = unequal.in_time(m)
    final = network.sweep.forward(layers, unequal.step_sizes, trajectory).copy()
    pair, stages = network.sweep.trajectory(1, network.sweep.image_block), len(layers.biases) // 3
    parts = [part.copy() for part in trajectory.complete(0)]
    for k, h in enumerate(np.diff(TIMES)):
        for here, value in zip(pair.complete(0), parts, strict=True):
            here[:] = value
        network.sweep.forward(layers.at_step(k, stages), np.array([h]), pair)
        parts = [part.copy() for part in pair.complete(1)]
    assert np.allclose(parts[0], final, rtol=0, atol=1e-14)


def test_equal_steps_given_as_times():
    network = small_network()
    m = network.control_space.random(np.random.default_rng(0), 0.3)
    Y0 = smooth(network.state_space(2))
    given = network.with_depth(steps=np.linspace(0, 1.5, 4))
    assert np.allclose(cn.propagate(given, m, Y0).dat.data_ro, cn.propagate(network, m, Y0).dat.data_ro, atol=1e-14)


@pytest.mark.parametrize("scheme", ["euler", "verlet"])
def test_training_problem_with_any_memory(assert_taylor, scheme):
    dynamics, integrator = PAIRS[scheme]
    network = small_network(layers=5, T=0.5, dynamics=dynamics, integrator=integrator)
    check_derivatives_whatever_the_memory(
        network.with_depth(steps=[0.0, 0.03, 0.1, 0.3, 0.35, 0.5]), assert_taylor)


def test_saved_and_loaded(tmp_path):
    operators = small_network().operators
    controls = cn.ControlSpace(1.5, [0.0, 0.2, 1.5], operators, 2)
    problem = small_problem(network=cn.Network(operators, controls, [0.0, 0.1, 0.2, 0.7, 1.5]))
    m = problem.controls(np.random.default_rng(0), 0.3)
    cn.save(tmp_path / "net.h5", problem, m)
    found = cn.load(tmp_path / "net.h5")
    assert np.array_equal(found.network.times, problem.network.times)
    assert np.array_equal(found.network.control_space.times, controls.times)
    sample = problem.average.sample
    assert np.allclose(found.scores(sample), problem.prediction(m).scores(sample), rtol=0, atol=1e-13)
    finer = cn.ControlSpace(1.5, [0.0, 0.1, 0.2, 0.85, 1.5], operators, 2)
    times = [0.05, 0.15, 0.3, 1.0]
    other = small_problem(network=cn.Network(operators, finer))
    deep = cn.load_controls(tmp_path / "net.h5", other)
    assert np.array_equal(finer.sampling(times) @ deep.s.dat.data_ro, controls.sampling(times) @ m.s.dat.data_ro)
    with pytest.raises(ValueError, match="2 control cells, which the problem's 4 do not refine"):
        uniform = small_problem(network=cn.Network(operators, cn.ControlSpace(1.5, 4, operators, 2)))
        cn.load_controls(tmp_path / "net.h5", uniform)


@on_ranks
def test_on_ranks(annotation):
    """Values and derivatives are those of one rank."""
    def numbers(comm):
        return propagation_numbers(build_network(comm, False).with_depth(steps=[0.0, 0.1, 0.5, 0.6]), annotation)

    assert_equal(numbers(COMM_WORLD), numbers(COMM_SELF))
