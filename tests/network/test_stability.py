"""Steps that are too long for a mesh are warned of, with the steps that would do; growth that is meant passes."""

import warnings

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, FunctionSpace, IcosahedralSphereMesh
from support.networks import blobs, small_network, small_problem, square

import ctrlnet as cn
from ctrlnet.network.stability import StabilityWarning, warn_of_long_steps
from ctrlnet.transfer import carry


def diffusing(network, coefficient=0.05, operator="laplacian"):
    """Controls by which every feature diffuses, or is carried along."""
    m = network.control_space.zero()
    s = np.zeros((len(m.s.dat.data_ro), len(network.operators), network.features, network.features))
    s[:, network.operators.names.index(operator)] = coefficient * np.eye(network.features)
    m.s.dat.data_wo[:] = s.reshape(len(s), -1)
    return m


def warnings_of(network, m):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_long_steps(network, m)
    return [str(w.message) for w in caught if w.category is StabilityWarning]


def on_cells(network, cells, comm=COMM_WORLD):
    return network.on(FunctionSpace(square(cells, comm=comm), "CG", 1))


SETTINGS = {
    "Euler": ({}, 0.05), "Runge-Kutta": (dict(integrator=cn.RungeKutta()), 0.05),
    "parabolic": (dict(dynamics=cn.Parabolic()), 0.3),
    "Hamiltonian": (dict(dynamics=cn.Hamiltonian(), integrator=cn.StoermerVerlet()), 0.3),
    "single precision": (dict(precision="single"), 0.05),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mesh_16_times_finer_is_warned_of_and_the_steps_named_do(name):
    settings, coefficient = SETTINGS[name]
    network = small_network(3, **settings)
    m = diffusing(network, coefficient)
    assert warnings_of(network, m) == []
    fine = on_cells(network, 48)
    [message] = warnings_of(fine, m)
    assert "too long for this mesh of 2401 nodes" in message and "ImplicitMidpoint()" in message
    steps = int(message.split("steps=")[1].split(")")[0])
    assert steps > network.steps and warnings_of(fine.with_depth(steps=steps), m) == []
    assert warnings_of(fine, m) == []  # once


def test_the_bound_is_that_of_forward_euler():
    """A step multiplies a mode of diffusion by 1 - h lambda: beyond -2 it is warned of."""
    network = small_network(12, dynamics=cn.Residual(cn.identity))
    matrix = network.operators.matrices[network.operators.names.index("laplacian")]
    largest = np.abs(np.linalg.eigvals(matrix.convert("dense").getDenseArray())).max()
    h = network.control_space.T / network.steps
    for product, warned in ((2.5, False), (3.5, True)):
        other = on_cells(network, 12)
        assert bool(warnings_of(other, diffusing(other, product / (h * largest)))) == warned


@pytest.mark.parametrize("coefficient, operator", [(-0.05, "laplacian"), (5.0, "1"), (-0.1, "1"), (0.01, "dx")])
def test_what_the_equation_does_itself_passes(coefficient, operator):
    network = small_network(24, dynamics=cn.Residual(cn.identity))
    assert warnings_of(network, diffusing(network, coefficient, operator)) == []


@pytest.mark.parametrize("settings", [
    dict(integrator=cn.BackwardEuler()), dict(integrator=cn.ImplicitMidpoint())], ids=["backward", "midpoint"])
def test_implicit_schemes_have_no_bound(settings):
    network = on_cells(small_network(3, **settings), 48)
    assert warnings_of(network, diffusing(network)) == []


def test_implicit_diffusion_has_none_and_the_network_has():
    network = small_network(24, dynamics=cn.ReactionDiffusion(0.5), integrator=cn.IMEX())
    assert warnings_of(network, diffusing(network, 0.001)) == []
    assert warnings_of(network, diffusing(network, 2.0))


def test_on_a_sphere():
    operators = cn.low_order_operators(FunctionSpace(IcosahedralSphereMesh(1.0, 3), "CG", 1))
    network = cn.Network(operators, cn.ControlSpace(1.0, 2, operators, 2))
    assert warnings_of(network, diffusing(network))


@pytest.mark.parametrize("use", ["carry", "accuracy", "prediction", "train_level"])
def test_it_is_said_where_trained_controls_meet_a_mesh(use):
    coarse = small_problem(3)
    fine = small_problem(network=on_cells(coarse.network, 48), count=6)
    m = fine.controls().replace(s=diffusing(coarse.network).s)
    calls = {
        "carry": lambda: carry(coarse.network, m, fine.network.space),
        "accuracy": lambda: fine.accuracy(blobs(6), m), "prediction": lambda: fine.prediction(m),
        "train_level": lambda: cn.train_level(fine, m, iterations=0)}
    with pytest.warns(StabilityWarning, match="too long for this mesh"):
        calls[use]()


@pytest.mark.parallel(nprocs=[2, 3])
def test_on_ranks_it_is_said_once_and_the_same():
    messages = []
    for comm in (COMM_SELF, COMM_WORLD):
        network = on_cells(small_network(3, comm=comm), 48, comm)
        messages.append(COMM_WORLD.bcast(warnings_of(network, diffusing(network))))
        assert comm is COMM_SELF or COMM_WORLD.rank == 0 or warnings_of(network, diffusing(network)) == []
    assert messages[0] and messages[0] == messages[1]
