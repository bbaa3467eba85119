"""Networks on spheres, shells and slabs: derivatives, both readings, ranks, and rotation of everything together."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional
from support.derivatives import check_derivatives
from support.ranks import assert_equal, in_order_of_place
from support.readings import compare_readings
from support.surfaces import controls_of, network_on, places, smooth, spaces_on_spheres

import ctrlnet as cn
from ctrlnet.operators import east, north, sphere_hierarchy

IMEX = dict(dynamics=cn.ReactionDiffusion(0.4, learned=True), integrator=cn.IMEX())
STEPS = {
    "explicit": {}, "imex": IMEX,
    "multigrid": IMEX | dict(integrator=cn.IMEX(solver="multigrid"), refinements=2),
    "backward Euler": dict(integrator=cn.BackwardEuler(), T=0.1),
}


@pytest.mark.parametrize("step", STEPS)
def test_derivatives_on_a_sphere(make_case, annotation, assert_taylor, step):
    """Dot products to 1e-12; remainders of order 2 with the gradient and 3 with the Hessian."""
    case = make_case("sphere", layers=2, **STEPS[step])
    assert case.network.operators.names == ["1", "dx", "dy", "dz", "laplacian"]
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize("step", ["explicit", "imex"])
@pytest.mark.parametrize("kind", ["shell", "slab"])
def test_derivatives_on_extruded_meshes(make_case, annotation, assert_taylor, kind, step):
    case = make_case(kind, layers=2, **STEPS[step])
    assert case.network.operators.names == ["1", "dx", "dy", "dz", "laplacian"]
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize(("kind", "step"), [
    ("sphere", "explicit"), ("sphere", "imex"), ("shell", "explicit"), ("slab", "explicit"), ("slab", "imex")])
def test_both_readings_agree(make_case, annotation, kind, step):
    case = make_case(kind, layers=2, images=1, T=0.15, **STEPS[step])
    compare_readings(case.network, case.m, case.Y0, list(case.perturbation()), annotation)


def test_both_readings_agree_in_a_frame(make_case, annotation):
    """With antisymmetric dynamics, so that adjoints of the frame's operators are read too."""

    def frame(V):
        return cn.low_order_operators(V, frame=(east, north))

    case = make_case("sphere", layers=2, images=1, T=0.15, operators=frame, dynamics=cn.Antisymmetric())
    compare_readings(case.network, case.m, case.Y0, list(case.perturbation()), annotation)


TURNS = {  # 90 degrees about each axis, as matrices of integers
    "x": [[1, 0, 0], [0, 0, -1], [0, 1, 0]], "y": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
    "z": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("step", ["explicit", "imex"])
@pytest.mark.parametrize("axis", TURNS)
def test_nothing_changes_when_everything_is_rotated(axis, step):
    """Mesh, images, readout and the three derivative coefficients by Q: D'_j = sum_k Q_jk D_k, so s' = Q s."""
    Q = np.array(TURNS[axis], dtype=float)
    before, after = scores(np.eye(3), np.eye(3), **STEPS[step]), scores(Q, Q, **STEPS[step])
    assert np.abs(after - before).max() < 1e-10 < 0.1 < np.ptp(before)
    assert np.abs(scores(Q, np.eye(3), **STEPS[step]) - before).max() > 1e-3, "the coefficients turn too"


def scores(turn, turn_coefficients, **step):
    """Of three images, by a readout on the coarser level; all things in space are turned."""
    hierarchy = sphere_hierarchy(2.0, 2)
    for mesh in hierarchy:
        mesh.coordinates.dat.data[:] = mesh.coordinates.dat.data_ro @ turn.T
    V = [FunctionSpace(mesh, "CG", 1) for mesh in hierarchy]
    network = network_on(V[2], **step)
    m, Y0 = controls_of(network), Function(network.state_space(3))
    s = m.s.dat.data.reshape(-1, 5, 2, 2)
    s[:, 1:4] = np.einsum("jk,tkab->tjab", turn_coefficients, s[:, 1:4])
    Y0.dat.data[:] = by_place(places(V[2]) @ turn)
    Y = cn.propagate(network, m, Y0)
    features = cn.Readout(network, 3, V[1]).restrict(Y.dat.data_ro.reshape(-1, 2, 3))
    return by_place(places(V[1]) @ turn).reshape(-1, 3).T @ features


def by_place(x):
    """Six smooth functions at places (nodes, 3)."""
    return np.stack([np.sin((k + 1) * x[:, 0]) + np.cos(x[:, 1] - 0.3 * k) * x[:, 2] for k in range(6)], axis=1)


@pytest.mark.parallel(nprocs=[1, 2, 3])
def test_the_same_objective_on_any_number_of_ranks(annotation):
    """State, scores of a coarse readout, objective, gradient and Hessian product; explicit and IMEX by multigrid."""
    for step in ({}, dict(dynamics=cn.ReactionDiffusion(0.4), integrator=cn.IMEX(solver="multigrid"))):
        found = []
        for comm in (COMM_WORLD, COMM_SELF):
            V = spaces_on_spheres(2, comm=comm)
            network = network_on(V[2], **step)
            m, Y0 = controls_of(network), smooth(network.state_space(2))
            dm, dY0 = [f.copy(deepcopy=True) for f in m], smooth(network.state_space(2), 1.0)
            with annotation() as tape:
                Y = cn.propagate(network, m, Y0)
                J = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(f) for f in (*m, Y0)], tape=tape)
            readout = cn.Readout(network, 3, V[1])
            features = readout.restrict(Y.dat.data_ro.reshape(-1, 2, 2)).reshape(-1, 4)
            W = np.concatenate(comm.allgather(by_place(places(V[1]))))
            numbers = {"J": np.array([float(J.functional)]), "scores": W.T @ features,
                       "Y": in_order_of_place(Y, network.space)}
            for what, parts in (("dJ", J.derivative()), ("H d", J.hessian([*dm, dY0]))):
                numbers |= {f"{what} {k}": p.dat.data_ro.copy() for k, p in enumerate(parts[:-1])}
                numbers[f"{what} Y0"] = in_order_of_place(parts[-1], network.space)
            found.append(numbers)
        assert_equal(*found)
