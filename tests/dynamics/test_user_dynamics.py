"""Dynamics written as UFL forms, stepped by Irksome: built-in schemes as oracles, derivatives, training, ranks."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Function,
    FunctionSpace,
    RectangleMesh,
    as_vector,
    dx,
    grad,
    inner,
    tanh,
)
from irksome import BackwardEuler, Dt, GaussLegendre, QinZhang
from irksome.tableaux.ButcherTableaux import ButcherTableau
from support.derivatives import check_derivatives
from support.networks import small_network, small_problem, square
from support.ranks import assert_equal, propagation_numbers

import ctrlnet as cn
from ctrlnet.integrators.irksome import KRYLOV
from ctrlnet.network.propagation import PropagationBlock
from ctrlnet.operators import lumped_dx
from ctrlnet.optimise import Limits, ProjectedFunctional, TaoOptimiser, presets

EULER = ButcherTableau(np.zeros((1, 1)), np.ones(1), None, np.zeros(1), 1, None, None)
TIGHT = {"snes_rtol": 1e-13, "snes_atol": 1e-13}


def linear(Y, v, layer):
    """dY/dt = KY + b."""
    return inner(Dt(Y), v) * lumped_dx() - layer.affine(Y, v)


def constrained(state, test, layer):
    """dY/dt = tanh(Z), 0 = Z - KY - b: the residual network, with Z as a constraint."""
    (Y, Z), (v, w) = state, test
    return (inner(Dt(Y) - as_vector([tanh(z) for z in Z]), v) + inner(Z, w)) * lumped_dx() - layer.affine(Y, w)


def allen_cahn(Y, v, layer):
    reaction = as_vector([y - y**3 for y in Y])
    return (inner(Dt(Y) - reaction, v) + 0.1 * inner(grad(Y), grad(v))) * lumped_dx() - layer.affine(Y, v)


def excitable(state, test, layer):
    """FitzHugh-Nagumo: a fast state that images excite, and a slow one that recovers it."""
    (Y, R), (v, w) = state, test
    reaction = as_vector([y - y**3 for y in Y])
    fast = inner(Dt(Y) - reaction + R, v) + 0.1 * inner(grad(Y), grad(v))
    return (fast + inner(Dt(R) - 0.3 * (Y - 0.5 * R), w)) * lumped_dx() - layer.affine(Y, v)


def case_of(make_case, residual, tableau, kind="quadrilateral", parts=1, images=2, parameters=TIGHT, **settings):
    defaults = dict(layers=2, cells=2, degree=1, control_cells=2, T=0.5, operators=cn.low_order_operators)
    dynamics = cn.UserDynamics(residual, parts)
    integrator = cn.Irksome(tableau, parameters, images=images)
    return make_case(
        kind, images=images, dynamics=dynamics, integrator=integrator, **(defaults | settings))


PAIRS = {
    "explicit": (linear, EULER, 1), "constrained": (constrained, GaussLegendre(1), 2),
    "diagonally implicit": (allen_cahn, BackwardEuler(), 1), "coupled": (excitable, GaussLegendre(2), 2),
}


@pytest.mark.parametrize(("residual", "tableau", "parts", "kind", "images", "builtin"), [
    (linear, EULER, 1, "quadrilateral", 3, dict(dynamics=cn.Residual(cn.identity))),
    (linear, EULER, 1, "triangle", 2, dict(dynamics=cn.Residual(cn.identity))),
    (linear, EULER, 1, "tetrahedron", 1, dict(dynamics=cn.Residual(cn.identity))),
    (constrained, BackwardEuler(), 2, "quadrilateral", 3,
     dict(dynamics=cn.Residual(), integrator=cn.BackwardEuler(TIGHT))),
    (constrained, GaussLegendre(1), 2, "quadrilateral", 3,
     dict(dynamics=cn.Residual(), integrator=cn.ImplicitMidpoint(TIGHT))),
], ids=["Euler", "Euler on triangles", "Euler in 3D", "backward Euler", "implicit midpoint"])
def test_a_form_of_built_in_dynamics_gives_their_numbers(make_case, residual, tableau, parts, kind, images, builtin):
    """Y(T), F'd, F'^* w and (F'' d)^* w + F'^* dw of Irksome's route and of the kernels' agree to 1e-10."""
    case = case_of(make_case, residual, tableau, kind, parts, images)
    mine = case.network
    other = cn.Network(mine.operators, mine.control_space, mine.steps, **builtin)
    points, direction = [case.s, case.b, case.Y0], list(case.perturbation())
    rng = np.random.default_rng(5)
    weights = [Function(case.Y0.function_space()).riesz_representation("l2") for _ in range(2)]
    for w in weights:
        w.dat.data[:] = rng.standard_normal(w.dat.data_ro.shape)
    found = []
    for network in (mine, other):
        block = PropagationBlock(network, points[:-1], points[-1])
        for dependency, d in zip(block.get_dependencies(), direction, strict=True):
            dependency.tlm_value = d
        found.append([
            cn.propagate(network, points[:-1], points[-1]), block.evaluate_tlm_component(points, direction, None, 0),
            *block.prepare_evaluate_adj(points, weights[:1], None),
            *block.prepare_evaluate_hessian(points, weights[1:], weights[:1], None),
        ])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.dat.data_ro, b.dat.data_ro, rtol=0, atol=1e-10 * np.abs(b.dat.data_ro).max())


# Kernels of second derivatives of two coupled stages take minutes to compile the first time.
@pytest.mark.parametrize("pair", [p if p != "coupled" else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS])
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, pair):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    residual, tableau, parts = PAIRS[pair]
    case = case_of(make_case, residual, tableau, parts=parts)
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize(("residual", "tableau", "parts", "order"), [
    (linear, EULER, 1, 1), (allen_cahn, QinZhang(), 1, 2), (excitable, GaussLegendre(2), 2, 4),
], ids=["Euler", "Qin-Zhang", "Gauss-Legendre"])
def test_order(make_case, residual, tableau, parts, order):
    """The error falls by 2^order when the steps are halved, to 0.1, with controls that vary in time."""
    case = case_of(make_case, residual, tableau, parts=parts, control_cells=1)
    finals = []
    assert case.network.integrator.order == order
    for steps in (8, 16, 32) if order > 1 else (64, 128, 256):
        network = case.network.with_depth(steps=steps)
        finals.append(cn.propagate(network, case.m, case.Y0).dat.data_ro.copy())
    errors = [np.linalg.norm(a - b) for a, b in zip(finals, finals[1:], strict=False)]
    observed = np.log2(errors[0] / errors[1])
    assert abs(observed - order) <= 0.1, f"declared order {order}, observed {observed}, errors {errors}"


def test_solver_parameters_are_a_choice(make_case):
    """A Krylov solve, and multigrid on the hierarchy of a mesh with one image, give the numbers of the default."""
    case = case_of(make_case, allen_cahn, BackwardEuler())
    Y = cn.propagate(case.network, case.m, case.Y0).dat.data_ro
    other = cn.Network(
        case.network.operators, case.network.control_space, case.network.steps, dynamics=case.network.dynamics,
        integrator=cn.Irksome(BackwardEuler(), KRYLOV | TIGHT, images=1))
    single = Function(other.state_space(1))
    for image in range(2):
        single.dat.data[:] = case.Y0.dat.data_ro.reshape(-1, 2, 2)[:, :, image]
        alone = cn.propagate(other, case.m, single).dat.data_ro
        np.testing.assert_allclose(alone, Y.reshape(-1, 2, 2)[:, :, image], rtol=0, atol=1e-11)


def user_problem(residual=allen_cahn, tableau=None, parts=1, count=24, comm=COMM_WORLD, parameters=TIGHT, **settings):
    tableau = BackwardEuler() if tableau is None else tableau
    network = small_network(
        comm=comm, dynamics=cn.UserDynamics(residual, parts), integrator=cn.Irksome(tableau, parameters, images=12))
    return small_problem(network=network, count=count, **settings)


def test_training_problem_with_any_memory(assert_taylor):
    """The gradient is the same with stored, recomputed and checkpointed states, and exact."""
    gradients = []
    bytes_a_chunk = user_problem().network.sweep.trajectory_bytes(3, 12)
    for limit in (2**31, 2 * bytes_a_chunk, 1):
        problem = user_problem(constrained, GaussLegendre(1), 2, memory_limit=limit)
        point = list(problem.controls(np.random.default_rng(0), 0.03))
        point[2].dat.data[:] = np.random.default_rng(1).standard_normal(point[2].dat.data_ro.shape)
        functional = problem.reduced_functional(point)
        assert np.isfinite(float(functional(point)))
        gradients.append(np.concatenate([g.dat.data_ro.ravel() for g in functional.derivative()]))
    assert problem.average.snapshots == 1
    for gradient in gradients[1:]:
        np.testing.assert_allclose(gradient, gradients[0], rtol=0, atol=1e-12 * np.abs(gradients[0]).max())
    problem = user_problem(count=12)
    point = list(problem.controls(np.random.default_rng(0), 0.03))
    point[2].dat.data[:] = np.random.default_rng(1).standard_normal(point[2].dat.data_ro.shape)
    functional = problem.reduced_functional(point)
    direction = [f._ad_copy() for f in point]
    for f in direction:
        f.dat.data[:] = 0.1 * np.random.default_rng(2).standard_normal(f.dat.data_ro.shape)
    assert_taylor(functional, point, direction)


def test_training_lowers_the_objective_on_one_mesh_and_over_two():
    fine = FunctionSpace(square(12), "CG", 1)
    # A coefficient is weighed by its operator on the fine mesh, where diffusion of the wrong sign has no solution.
    weights = dict(control_size=1e-3, control_scales=cn.low_order_operators(fine).norms, weights_gradient=1e-2,
                   weights_size=1e-2)
    problem = user_problem(**weights)
    start = problem.controls(np.random.default_rng(0), 0.03)[:2]
    history = cn.train_level(problem, start, iterations=3).history
    assert history.last.number == 3
    objective = history.column("objective")
    assert objective[-1] < 0.9 * objective[0] and (np.diff(objective) <= 0).all()

    network = problem.network.on(fine)
    assert network.sweep is not problem.network.sweep and network.dynamics is problem.network.dynamics
    finer = cn.TrainingProblem(problem.readout.on(network), problem.average.sample, **weights)
    coarse, result = cn.train_multiscale([problem, finer], start, iterations=[2, 1])
    assert coarse.history.last.number == 2 and result.history.last.number == 1
    assert result.history.last.objective < result.history.iterations[0].objective
    assert result.history.iterations[0].objective < 0.9 * coarse.history.iterations[0].objective


@pytest.mark.slow
def test_newton_and_gauss_newton_take_user_dynamics():
    problem = user_problem(count=12)
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0), 0.03)[:2])
    for curvature in ("gauss_newton", "hessian"):
        options = presets.TRUST_REGION | {"tao_ntr_ksp_max_it": 3}
        optimiser = TaoOptimiser(functional, options, Limits(3), curvature=curvature)
        optimiser.solve()
        objective = optimiser.history.column("objective")
        assert objective[-1] < objective[0] and sum(optimiser.history.column("krylov")) > 0


def test_a_failed_solve_is_an_error_that_optimisers_handle():
    """Too few Newton iterations for a long step: a StageSolveError, after which the tape is as good as before."""
    problem = user_problem(parameters={"snes_max_it": 4})
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0), 0.03)[:2])
    s, b = functional.controls[0].control, functional.controls[1].control
    before = float(functional([s, b]))
    far = Function(s.function_space()).assign(100 * s)
    with pytest.raises(cn.StageSolveError, match="(?s)BackwardEuler.*a solve of a step of h = 0.5.*DIVERGED"):
        functional([far, b])
    assert float(functional([s, b])) == pytest.approx(before, rel=1e-13)

    failures = []

    class Longer(ProjectedFunctional):
        """The trial points of a search, ten times as far away."""

        def __call__(self, values):
            try:
                return super().__call__(values)
            except cn.StageSolveError:
                failures.append(1)
                raise

    functional = Longer(problem, (s, b))
    optimiser = TaoOptimiser(functional, {"tao_type": "lmvm", "tao_ls_stepinit": 500.0}, Limits(3))
    optimiser.solve()
    objective = optimiser.history.column("objective")
    assert failures and np.isfinite(objective).all() and objective[-1] < objective[0]


class TestRefusals:
    @pytest.mark.parametrize("integrator", [
        cn.ForwardEuler(), cn.RungeKutta(), cn.IMEX(), cn.StoermerVerlet(), cn.BackwardEuler(), cn.ImplicitMidpoint()],
        ids=lambda i: type(i).__name__)
    def test_built_in_schemes_do_not_take_forms(self, integrator):
        with pytest.raises(ValueError, match="UserDynamics"):
            small_network(dynamics=cn.UserDynamics(linear), integrator=integrator)

    @pytest.mark.parametrize("dynamics", [None, cn.ReactionDiffusion(0.1), cn.Hyperbolic()])
    def test_irksome_does_not_take_built_in_dynamics(self, dynamics):
        with pytest.raises(ValueError, match=r"steps dynamics written as a UFL form.*have ForwardEuler"):
            small_network(dynamics=dynamics, integrator=cn.Irksome(EULER))

    @pytest.mark.parametrize(("residual", "message"), [
        (lambda Y, v, layer: inner(Y, v), "must return a UFL form, an integral with its measure; received"),
        (lambda Y, v, layer: inner(Dt(Y), Y) * dx, r"linear in its test function.*its form has 0 argument"),
        (lambda Y, v, layer: inner(Y, v) * dx - layer.affine(Y, v), "has no time derivative"),
    ], ids=["no form", "no test function", "no Dt"])
    def test_forms_that_cannot_be_stepped(self, residual, message):
        with pytest.raises(ValueError, match=message):
            small_network(dynamics=cn.UserDynamics(residual), integrator=cn.Irksome(EULER))

    def test_products_of_operators_have_no_form(self):
        with pytest.raises(ValueError, match=r"is a product of 2 operators.*second_derivative\(0, 1\)"):
            small_network(
                basis=cn.stencil_operators, dynamics=cn.UserDynamics(linear), integrator=cn.Irksome(EULER))

    def test_single_precision(self):
        with pytest.raises(ValueError, match="in double precision; received precision 'single'"):
            small_network(dynamics=cn.UserDynamics(linear), integrator=cn.Irksome(EULER), precision="single")

    def test_several_images_on_a_mesh_that_cannot_be_extruded(self, make_network):
        with pytest.raises(ValueError, match=r"mesh of 3 dimensions.*Irksome\(tableau, images=1\)"):
            make_network("tetrahedron", dynamics=cn.UserDynamics(linear), integrator=cn.Irksome(EULER))

    def test_what_is_no_dynamics_and_no_scheme(self):
        with pytest.raises(ValueError, match="must be a function of .*received 3"):
            cn.UserDynamics(3)
        with pytest.raises(ValueError, match="at least one part, received parts=0"):
            cn.UserDynamics(linear, parts=0)
        with pytest.raises(ValueError, match="one of Irksome's Butcher tableaux.*received 'rk4'"):
            cn.Irksome("rk4")
        with pytest.raises(ValueError, match=r"nodes \(1\.5,\); controls exist within the step"):
            cn.Irksome(ButcherTableau(np.full((1, 1), 1.5), np.ones(1), None, np.full(1, 1.5), 1, None, None))
        with pytest.raises(ValueError, match="received 'imex'"):
            cn.Irksome(EULER, stage_type="imex")
        with pytest.raises(ValueError, match="received images=0"):
            cn.Irksome(EULER, images=0)


@pytest.mark.parallel(nprocs=2)
def test_same_numbers_on_two_ranks(annotation):
    check_ranks(annotation)


@pytest.mark.slow
@pytest.mark.parallel(nprocs=3)
def test_same_numbers_on_three_ranks(annotation):
    check_ranks(annotation)


def check_ranks(annotation):
    """State, gradient and Hessian product of one propagation, and the course of a short training."""

    def numbers(comm, quadrilateral, residual, tableau, parts):
        V = FunctionSpace(RectangleMesh(7, 6, 3.5, 3.0, quadrilateral=quadrilateral, comm=comm), "CG", 1)
        D = cn.low_order_operators(V)
        integrator = cn.Irksome(tableau, TIGHT, images=2)
        network = cn.Network(
            D, cn.ControlSpace(0.4, 2, D, 2), dynamics=cn.UserDynamics(residual, parts), integrator=integrator)
        return propagation_numbers(network, annotation)

    for setting in ((True, constrained, GaussLegendre(1), 2), (False, linear, EULER, 1)):
        assert_equal(numbers(COMM_WORLD, *setting), numbers(COMM_SELF, *setting), 1e-10)
    courses = []
    for comm in (COMM_WORLD, COMM_SELF):
        problem = user_problem(comm=comm)
        result = cn.train_level(problem, problem.controls(np.random.default_rng(0), 0.03)[:2], iterations=2)
        courses.append({"J": np.array(result.history.column("objective")), "s": result.controls.s.dat.data_ro.copy()})
    assert_equal(*courses, 1e-8)
