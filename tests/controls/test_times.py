"""Control cells of unequal size: the same functions of time, however it is divided."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import CheckpointFile, PointEvaluator, SpatialCoordinate, as_vector, assemble
from firedrake.adjoint import Control, ReducedFunctional
from support.networks import small_network

import ctrlnet as cn
from ctrlnet.transfer import carry

ENDS = [0.0, 0.1, 0.9, 1.5]


def space(degree, ends=ENDS, **more):
    return cn.ControlSpace(1.5, ends, 2, 1, degree=degree, **more)


@pytest.mark.parametrize("degree", [0, 1])
def test_sampling_agrees_with_evaluation(degree):
    controls = space(degree)
    m = controls.random(np.random.default_rng(0))
    times = np.array([0.05, 0.2, 0.7, 0.95, 1.4])
    expected = PointEvaluator(controls.mesh, times[:, None]).evaluate(m.s)
    found = controls.sampled(controls.sampling(times), controls.control_set.arrays(m))[0]
    np.testing.assert_allclose(found.reshape(5, -1), expected, atol=1e-14)


@pytest.mark.parametrize("degree", [0, 1])
def test_finer_and_divided_cells_hold_the_same_functions(degree):
    coarse = space(degree, refinements=1)
    m = coarse.random(np.random.default_rng(1))
    finer = coarse.finer()
    assert finer.cells == 6 and np.allclose(finer.times, [0, 0.05, 0.1, 0.5, 0.9, 1.2, 1.5])
    other = coarse.with_cells([0.0, 0.1, 0.3, 0.9, 1.5])
    times = np.linspace(0.01, 1.49, 30)
    expected = coarse.sampling(times) @ m.s.dat.data_ro
    for target, found in ((finer, coarse.prolong(m, finer)), (other, coarse.interpolate(m, other))):
        assert np.allclose(target.sampling(times) @ found.s.dat.data_ro, expected, rtol=0, atol=1e-14)


def test_interpolation_is_taped(annotation, assert_taylor):
    coarse = space(1)
    other = coarse.with_cells([0.0, 0.1, 0.3, 0.9, 1.5])
    m, direction = (coarse.random(np.random.default_rng(k)).s for k in (1, 2))
    with annotation():
        J = assemble(other.regularisation(coarse.interpolate(coarse.zero().replace(s=m), other), 1.0, 0.3))
        functional = ReducedFunctional(J**2, Control(m))
    assert_taylor(functional, [m], [direction])


def test_jumps_are_over_the_distance_of_midpoints():
    controls = space(0)
    m = controls.zero()
    values = np.array([1.0, 3.0, 7.0])
    m.b.dat.data[controls._order] = values if m.b.dat.data_ro.ndim == 1 else values[:, None]
    midpoints = np.array([0.05, 0.5, 1.2])
    expected = 0.5 * (np.diff(values) ** 2 / np.diff(midpoints)).sum()
    assert assemble(controls.regularisation(m, 0.0, 1.0)) == pytest.approx(expected, rel=1e-13)


def test_a_checkpoint_file_takes_them(tmp_path):
    controls = space(1)
    m = controls.zero()
    m.b.interpolate(as_vector([SpatialCoordinate(controls.mesh)[0]]))
    with CheckpointFile(str(tmp_path / "m.h5"), "w") as file:
        file.save_function(m.b, name="b")
    again = space(1)
    with CheckpointFile(str(tmp_path / "m.h5"), "r") as file:
        found = file.load_function(again.mesh, "b")
    assert np.array_equal(again.control_set.zero().b.assign(found).dat.data_ro, m.b.dat.data_ro)
    assert space(1, [0.0, 0.2, 0.9, 1.5]).mesh.name != again.mesh.name


def test_depth_of_a_network_with_unequal_cells():
    """Steps are one a cell by default, and adapt_depth divides the cells."""
    operators = small_network().operators
    controls = cn.ControlSpace(1.5, ENDS, operators, 2, refinements=1)
    network = cn.Network(operators, controls)
    assert np.array_equal(network.times, ENDS) and np.allclose(network.step_sizes, np.diff(ENDS))
    moved, _ = carry(network, controls.random(np.random.default_rng(0)), control_space=controls.finer())
    assert np.allclose(moved.times, controls.finer().times)
    assert np.array_equal(network.with_depth(steps=network.divided(2)).times, controls.finer().times)


@pytest.mark.parametrize("times", [
    [0.0], [0.1, 1.5], [0.0, 0.5, 0.5, 1.5], [0.0, 0.7, 0.5, 1.5], [0.0, float("nan"), 1.5], [0.0, 1.0], [[0.0, 1.5]]])
def test_times_that_are_none_are_refused(times):
    network = small_network()
    with pytest.raises(ValueError, match="[Tt]imes of"):
        space(0, times)
    with pytest.raises(ValueError, match="[Tt]imes of"):
        network.with_depth(steps=times)


