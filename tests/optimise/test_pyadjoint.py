"""pyadjoint's own optimisers on every functional that has its interface, on any number of ranks."""

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, SpatialCoordinate, as_vector
from firedrake.adjoint import ReducedFunctional, minimize, taylor_test
from petsc4py import PETSc
from pyadjoint import MinimizationProblem, TAOSolver, maximize
from pyadjoint.enlisting import Enlist
from support.networks import small_network, small_problem

from ctrlnet.optimise import JointFunctional, ProjectedFunctional

on_some = pytest.mark.parallel(nprocs=[2, 3])

FUNCTIONALS = {
    "reduced": lambda p, m: p.reduced_functional(m),
    "joint": JointFunctional,
    "controls in time": lambda p, m: JointFunctional(p, m, names=["s", "b"]),
    "classifier": lambda p, m: JointFunctional(p, m, ["W", "beta"], riesz_map="l2"),
    "projected": ProjectedFunctional,
}
every_functional = pytest.mark.parametrize("kind", FUNCTIONALS)


def functional(kind, comm=COMM_WORLD):
    problem = small_problem(network=small_network(comm=comm))
    m = problem.controls(np.random.default_rng(0), 0.3)
    x, y = SpatialCoordinate(m.W.function_space().mesh())
    m.W.interpolate(as_vector([x, y - x, 1, y, -x, -1]) / 3)
    return FUNCTIONALS[kind](problem, m)


def start(J):
    return [c.tape_value()._ad_copy() for c in J.controls]


def tao_values(kind, parameters, comm):
    """The objective of TAO's first iterates, and at what it returns."""
    J = functional(kind, comm)
    solver = TAOSolver(MinimizationProblem(J), parameters, comm=comm)
    values = []

    def monitor(tao):
        values.append(tao.getObjectiveValue())
        if len(values) == 5:
            tao.setConvergedReason(PETSc.TAO.ConvergedReason.CONVERGED_USER)

    solver.tao.setMonitor(monitor)
    found = solver.solve()
    return values, J(Enlist(found))


def minimized(kind, comm, **settings):
    """The objective at the start and at what ``minimize`` returns."""
    J = functional(kind, comm)
    before = J(start(J))
    return before, J(Enlist(minimize(J, options={"disp": False}, **settings)))


def limits(method):
    return {"tao_type": method, "tao_gatol": 1e-9, "tao_grtol": 1e-9}


@every_functional
@pytest.mark.parametrize("method", ["lmvm", "nls", "bnls"])
def test_tao_lowers_the_objective(kind, method):
    values, found = tao_values(kind, limits(method), COMM_WORLD)
    assert values[-1] < 0.96 * values[0]
    assert found == pytest.approx(values[-1], rel=1e-12)


@on_some
def test_tao_has_the_iterates_of_one_rank():
    for kind, method, count in [(kind, "lmvm", 5) for kind in FUNCTIONALS] + [("joint", "nls", 3)]:
        expected, _ = tao_values(kind, limits(method), COMM_SELF)
        values, found = tao_values(kind, limits(method), COMM_WORLD)
        # Newton's inner solves end at a tolerance of their own.
        np.testing.assert_allclose(values[:count], expected[:count], rtol=1e-6, err_msg=kind)
        assert found == pytest.approx(values[-1], rel=1e-12)


@on_some
def test_on_ranks_minimize_finds_what_it_finds_on_one():
    for kind in FUNCTIONALS:
        (before, own), (_, shared) = (minimized(kind, comm, tol=1e-2) for comm in (COMM_SELF, COMM_WORLD))
        assert shared == pytest.approx(own, rel=1e-6), kind
        assert shared < 0.95 * before


@every_functional
def test_minimize_lowers_the_objective(kind):
    before, after = minimized(kind, COMM_WORLD, tol=1e-2)
    assert after < 0.95 * before


@every_functional
def test_a_scaled_functional(kind):
    """maximize scales by -1: what has no maximum is raised; a factor changes values and derivatives alike."""
    J = functional(kind)
    m = start(J)
    before, derivative = J(m), Enlist(J.derivative())
    J.scale = -2.0
    assert J(m) == pytest.approx(-2 * before, rel=1e-12)
    for scaled, plain in zip(Enlist(J.derivative()), derivative, strict=True):
        np.testing.assert_allclose(scaled.dat.data_ro, -2 * plain.dat.data_ro, rtol=1e-9, atol=1e-14)
    if kind != "reduced":  # pyadjoint's own does not scale them
        assert taylor_test(J, m, [f._ad_mul(0.1) for f in m]) > 1.9
        direction = [f._ad_mul(0.1) for f in m]
        twice = Enlist(J.hessian(direction))
        J.scale = 1.0
        for scaled, plain in zip(twice, Enlist(J.hessian(direction)), strict=True):
            np.testing.assert_allclose(scaled.dat.data_ro, -2 * plain.dat.data_ro, rtol=1e-9, atol=1e-14)


def test_maximize_raises_the_objective():
    J = functional("controls in time")
    before = J(start(J))
    found = maximize(J, bounds=([-1.0, -1.0], [1.0, 1.0]), tol=1e-2, options={"disp": False})
    J.scale = 1.0
    assert J(Enlist(found)) > before


@every_functional
def test_the_interface_is_that_of_pyadjoint(kind):
    J = functional(kind)
    assert isinstance(J, ReducedFunctional)
    m = start(J)
    direction = [f._ad_mul(0.1) for f in m]
    J(m)
    slope = float(J.tlm(direction))
    by_derivative = sum(d._ad_dot(g) for d, g in zip(direction, Enlist(J.derivative()), strict=True))
    assert slope == pytest.approx(by_derivative, rel=1e-10)
    if kind != "reduced":
        assert J.derivative()[J.names[0]] is not None and J.hessian(direction)[J.names[-1]] is not None  # by name
    for gradient, control in zip(Enlist(J.derivative(apply_riesz=True)), m, strict=True):
        assert gradient.function_space() == control.function_space()
