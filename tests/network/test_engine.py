"""What makes a network's sweep: made at first use, once, whatever the number of steps."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import Function
from support.networks import blobs, small_network

import ctrlnet as cn
from ctrlnet.kernels.code import compile as compilation
from ctrlnet.kernels.solves import diffusion

PAIRS = {
    "Euler": dict(),
    "Runge-Kutta": dict(integrator=cn.RungeKutta(), dynamics=cn.Parabolic()),
    "Verlet": dict(integrator=cn.StoermerVerlet(), dynamics=cn.Hyperbolic()),
    "IMEX": dict(integrator=cn.IMEX(), dynamics=cn.ReactionDiffusion(0.5)),
    "IMEX of a sum": dict(integrator=cn.IMEX(), dynamics=cn.Antisymmetric() + cn.Diffusion(0.5)),
    "backward Euler": dict(integrator=cn.BackwardEuler()),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_network_is_built_without_compiling_and_other_depths_share_its_sweep(pair, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("a kernel was compiled")

    with monkeypatch.context() as patched:
        patched.setattr(compilation, "load", compiled)
        network = small_network(**PAIRS[pair])
        deeper = network.with_depth(steps=2 * network.steps)
        longer = network.with_depth(network.control_space.finer())
        with pytest.raises(AssertionError, match="a kernel was compiled"):
            _ = deeper.sweep
    assert network.sweep is deeper.sweep is longer.sweep
    assert deeper.steps == 2 * network.steps == longer.steps and deeper.step_sizes.size == 2 * network.step_sizes.size
    assert network.on(network.space).sweep is not network.sweep, "another mesh has sweeps of its own"


def test_depths_of_one_step_size_share_factors_and_compared_depths_keep_theirs(monkeypatch):
    made = []

    class Counted(diffusion.DirectSolve):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(diffusion, "DirectSolve", Counted)
    network = small_network(dynamics=cn.ReactionDiffusion(0.5), integrator=cn.IMEX())
    m = network.control_space.random(np.random.default_rng(0))
    state = network.state_space(1)
    for _ in range(2):
        for steps in (3, 6):
            cn.propagate(network.with_depth(steps=steps), m, Function(state).assign(0.5))
    assert len(made) == 2, "one for each step size"
    monkeypatch.setattr(diffusion, "MOST_DIRECT", 1)
    resolvents = network.sweep._solve
    first = resolvents(0.1, 0.0)
    resolvents(0.2, 0.0)
    assert resolvents(0.1, 0.0) is not first, "beyond the limit only the last one is kept"


def test_adapting_the_depth_makes_one_sweep():
    network = small_network(dynamics=cn.ReactionDiffusion(0.5), integrator=cn.IMEX())
    m = network.control_space.random(np.random.default_rng(0))
    found = cn.adapt_depth(network, blobs(8), m, tolerance=0.2)
    assert found.network.sweep is network.sweep


def test_controls_of_other_features_are_no_depth():
    network = small_network()
    other = cn.ControlSpace(1.5, 3, network.operators, 3)
    with pytest.raises(ValueError, match="network of 2 features has no depth with controls of 3"):
        network.with_depth(other)
