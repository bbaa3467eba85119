"""A user's own CheckpointFile takes all controls side by side, and gives them back to be assigned."""

import numpy as np
import pytest
from firedrake import COMM_WORLD, CheckpointFile, FunctionSpace, VectorFunctionSpace
from mpi4py import MPI
from support.networks import blobs, small_network, square

import ctrlnet as cn


def problem_on(space, degree=0):
    operators = cn.low_order_operators(FunctionSpace(square(4), "CG", 1))
    controls = cn.ControlSpace(1.5, 3, operators, 2, degree=degree, refinements=2)
    readout = cn.Readout(cn.Network(operators, controls), 3, space)
    return cn.TrainingProblem(readout, blobs(6), control_size=1e-3, weights_size=1e-2)


@pytest.mark.parametrize("degree", [0, 1])
def test_controls_are_read_back_and_assigned(degree, tmp_path):
    check_round_trip(degree, str(tmp_path / "mine.h5"))


@pytest.mark.parallel(nprocs=[2, 3])
def test_on_ranks_controls_are_read_back_and_assigned(tmp_path):
    check_round_trip(1, COMM_WORLD.bcast(str(tmp_path / "mine.h5")))


def check_round_trip(degree, path):
    mesh = square(2)
    mesh.name = "classifier"
    problem = problem_on(FunctionSpace(mesh, "CG", 1), degree)
    space, rng = problem.network.control_space, np.random.default_rng(0)
    m = problem.controls(rng, 0.3)
    m.W.dat.data_wo[:] = COMM_WORLD.rank + rng.random(m.W.dat.data_ro.shape)
    m.beta.dat.data_wo[:] = COMM_WORLD.bcast(rng.random(m.beta.dat.data_ro.shape))
    finest = space.finer().finer()
    fine = space.prolong(m.restricted(space.control_set.names), finest)
    with CheckpointFile(path, "w") as file:
        for name, control in m.by_name().items():
            file.save_function(control, name=name)
        file.save_function(fine.s, name="fine s")
    with CheckpointFile(path, "r") as file:
        read = problem_on(FunctionSpace(file.load_mesh("classifier"), "CG", 1), degree)
        found = read.controls()
        for name, control in found.by_name().items():
            control.assign(file.load_function(control.function_space().mesh(), name))
            expected = m[name]
            if name != "W":
                assert np.array_equal(control.dat.data_ro, expected.dat.data_ro), name
        new = read.network.control_space.finer().finer().zero()
        new.s.assign(file.load_function(new.s.function_space().mesh(), "fine s"))
        assert np.array_equal(new.s.dat.data_ro, fine.s.dat.data_ro)
    sums = [COMM_WORLD.allreduce(np.sort(c.W.dat.data_ro, axis=0).sum(axis=0), MPI.SUM) for c in (m, found)]
    np.testing.assert_allclose(*sums, rtol=1e-13)
    assert read.functional(found) == pytest.approx(problem.functional(m), rel=1e-12)


def test_own_meshes_have_names_of_their_own():
    network = small_network()
    names = [s.mesh().name for s in (
        network.control_space.s_space, network.control_space.finer().s_space,
        cn.ControlSpace(2.0, 3, 4, 2).s_space, cn.ControlSpace(1.5, 6, 4, 2).s_space, cn.controls.numbers_space(3))]
    assert len(set(names)) == len(names) and all(name.startswith("ctrlnet_") for name in names)
    assert cn.controls.numbers_space(3).mesh() is cn.controls.numbers_space(4).mesh()
    assert VectorFunctionSpace(cn.controls.numbers_space(3).mesh(), "DG", 0, dim=3) == cn.controls.numbers_space(3)
