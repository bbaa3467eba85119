"""The classifier's convex solve, variable projection and quasi-Newton."""

from dataclasses import replace

import numpy as np
import pytest
from firedrake.adjoint import MinimizationProblem, TAOSolver
from mpi4py import MPI
from pyadjoint import taylor_to_dict
from support.networks import small_network, small_problem

import ctrlnet as cn
from ctrlnet.optimise import (
    ClassifierProblem,
    Limits,
    ProjectedFunctional,
    TaoOptimiser,
)
from ctrlnet.optimise.classifier import preconditioner as classifier_preconditioner


def inner_problem(loss=None, count=60, **settings):
    problem = small_problem(count=count, loss=loss, **settings)
    s, b, W, beta = problem.controls(np.random.default_rng(1), 0.3)
    features = problem.average.at(problem.network.layers((s, b))).features()
    matrix = problem.regularisation.weights_matrix
    inner = ClassifierProblem(features, matrix, 1e-2, problem.average.loss, MPI.COMM_SELF)
    return inner, *(a.copy() for a in problem.readout.arrays((W, beta)))


def dense_hessian(inner, W, beta):
    scores = W.T @ inner.features.values + beta[:, None]
    size = (W.shape[0] + 1) * W.shape[1]
    columns = [inner.hessian(scores, unit.reshape(-1, W.shape[1])).ravel() for unit in np.eye(size)]
    return np.array(columns).T


@pytest.mark.parametrize("loss", [cn.SoftmaxCrossEntropy(), cn.LeastSquares()])
def test_the_classifiers_minimiser_has_no_gradient_and_a_certificate_that_bounds_the_error(loss):
    inner, W, beta = inner_problem(loss)
    solution = inner.solve(W, beta, tolerance=1e-14)
    assert np.abs(inner.gradient(solution.W, solution.beta)).max() < 1e-8
    rough = inner.solve(W, beta, tolerance=1e-3)
    excess = rough.value - solution.value
    assert -1e-12 <= excess <= inner.certificate(rough.W, rough.beta) + 1e-12, "Phi - Phi* <= g^T R^-1 g / 2"


def test_the_classifiers_hessian_is_symmetric_positive_and_the_derivative_of_its_gradient():
    inner, W, beta = inner_problem()
    rng = np.random.default_rng(3)
    W, beta = W + rng.normal(size=W.shape), beta + rng.normal(size=beta.shape)
    H = dense_hessian(inner, W, beta)
    assert np.abs(H - H.T).max() < 1e-12 * np.abs(H).max()
    assert np.linalg.eigvalsh(H).min() > 0
    d, eps = rng.normal(size=(W.shape[0] + 1, W.shape[1])), 1e-6
    ahead = inner.gradient(W + eps * d[:-1], beta + eps * d[-1])
    behind = inner.gradient(W - eps * d[:-1], beta - eps * d[-1])
    assert np.allclose((ahead - behind).ravel() / (2 * eps), H @ d.ravel(), atol=1e-8)
    solved = inner.hessian_solver(W, beta)(d)
    assert np.allclose(H @ solved.ravel(), d.ravel(), atol=1e-8)


@pytest.mark.parametrize("whole, dense", [(4000, 2000), (0, 2000), (0, 0)], ids=["whole", "averaged", "sparse"])
def test_every_preconditioner_leads_to_the_same_minimiser(whole, dense, monkeypatch):
    monkeypatch.setattr(classifier_preconditioner, "_WHOLE", whole)
    monkeypatch.setattr(classifier_preconditioner, "_DENSE", dense)
    inner, W, beta = inner_problem()
    solution = inner.solve(W, beta, tolerance=1e-13)
    assert np.linalg.norm(inner.gradient(solution.W, solution.beta)) < 1e-7


def test_a_classifier_of_the_scores_before_is_a_nearer_start_than_the_classifier_before():
    inner, W, beta = inner_problem(weights_gradient=1e-5, weights_size=1e-5)
    before = inner.solve(W, beta, tolerance=1e-13)
    turn = np.eye(inner.features.values.shape[0]) + 0.05 * np.random.default_rng(2).standard_normal((W.shape[0],) * 2)
    turned = ClassifierProblem(
        replace(inner.features, values=turn @ inner.features.values), inner.regulariser, inner.ridge, inner.loss,
        inner.comm)
    least = turned.solve(W, beta, tolerance=1e-13).value

    def above(W, beta):
        *_, loss, penalty = turned._shortened(W, beta)
        return loss + penalty - least

    assert np.abs(before.scores - before.W.T @ inner.features.values - before.beta[:, None]).max() < 1e-12
    assert above(*turned.with_scores(before.scores)) < 0.2 * above(before.W, before.beta)


def test_an_inner_solve_does_not_amplify_round_off():
    """Nearly separable images and the factorisation of another point: iterates on several ranks are equal by this."""
    inner, W, beta = inner_problem(count=90, weights_gradient=1e-4, weights_size=1e-4)
    inner.solve(W, beta, tolerance=1e-7)
    rng = np.random.default_rng(2)
    turn = np.eye(W.shape[0]) + 0.3 * rng.standard_normal((W.shape[0],) * 2)
    found = []
    for rounding in (0.0, 1e-15):
        values = turn @ inner.features.values
        features = replace(inner.features, values=values * (1 + rounding * rng.standard_normal(values.shape)))
        turned = ClassifierProblem(features, inner.regulariser, inner.ridge, inner.loss, inner.comm)
        turned.inverse = inner.inverse
        found.append(turned.solve(W, beta, tolerance=1e-7))
    assert found[0].krylov_iterations == found[1].krylov_iterations
    difference = np.abs(found[0].W - found[1].W).max() / np.abs(found[0].W).max()
    assert difference < 1e-11, f"1e-15 in the features is {difference:.1e} in the classifier"


def test_features_out_of_range_are_refused_as_a_start():
    inner, W, beta = inner_problem()
    inner.features.values[:] = 1e200
    with pytest.raises(cn.InnerSolveError, match="out of range.*weights_size"), np.errstate(over="ignore"):
        inner.with_scores(np.ones((beta.size, inner.features.values.shape[1])))


def test_an_inner_solve_that_does_not_get_there_says_what_it_reached():
    inner, W, beta = inner_problem()
    with pytest.raises(cn.InnerSolveError, match="decrement.*tolerance.*weights_size"):
        inner.solve(W, beta, tolerance=1e-30, most_newton=2)


def test_the_projected_functional_has_taylor_order_two_and_three():
    problem = small_problem(network=small_network(basis=cn.stencil_operators))
    s, b, _, _ = problem.controls(np.random.default_rng(0), 0.3)
    functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
    rng = np.random.default_rng(5)
    direction = [f._ad_copy() for f in (s, b)]
    for f in direction:
        f.dat.data[:] = rng.normal(size=f.dat.data_ro.shape)
    rates = taylor_to_dict(functional, [s, b], direction)
    assert min(rates["R1"]["Rate"]) >= 1.95, rates
    assert min(rates["R2"]["Rate"]) >= 2.9, rates
    functional([s, b])
    assert functional.tlm(direction) == pytest.approx(
        sum(d._ad_dot(g) for d, g in zip(direction, functional.derivative(), strict=True)))


def test_projection_finds_the_minimum_of_the_joint_functional_over_the_classifier():
    problem = small_problem()
    s, b, _, _ = problem.controls(np.random.default_rng(0), 0.3)
    functional = ProjectedFunctional(problem, (s, b))
    value = functional([s, b])
    W, beta = functional.classifier()
    joint = problem.reduced_functional((s, b, W, beta))
    assert float(joint([s, b, W, beta])) == pytest.approx(float(value), rel=1e-12)
    dW, dbeta = joint.derivative()[2:]
    assert np.abs(dW.dat.data_ro).max() < 1e-6 and np.abs(dbeta.dat.data_ro).max() < 1e-6


def test_projection_needs_a_strongly_convex_inner_problem():
    problem = small_problem(weights_size=0.0)
    s, b, _, _ = problem.controls()
    with pytest.raises(ValueError, match="weights_size must be positive, received 0.0"):
        ProjectedFunctional(problem, (s, b))


def test_a_derivative_before_any_value_is_refused():
    problem = small_problem()
    functional = ProjectedFunctional(problem, problem.controls()[:2])
    with pytest.raises(ValueError, match="call it with the controls first"):
        functional.derivative()


def test_quasi_newton_lowers_the_objective_every_iteration_and_ends_at_the_limit():
    problem = small_problem()
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0))[:2])
    solver = TaoOptimiser(functional, limits=Limits(6))
    controls = solver.solve()
    objective = solver.history.column("objective")
    assert len(objective) == 7 and (np.diff(objective) < 0).all()
    assert solver.history.reason == "iteration limit"
    assert float(functional(controls)) == pytest.approx(objective[-1], rel=1e-9)
    assert (np.diff(solver.history.column("work")) > 0).all()
    assert "stopped: iteration limit" in str(solver.history)
    with pytest.raises(ValueError, match="objective.*received 'nonsense'"):
        solver.history.column("nonsense")


def test_no_iterations_evaluate_the_start():
    problem = small_problem()
    s, b, _, _ = problem.controls(np.random.default_rng(0))
    functional = ProjectedFunctional(problem, (s, b))
    solver = TaoOptimiser(functional, limits=Limits(0))
    result = solver.solve()
    assert len(solver.history.iterations) == 1
    assert np.allclose(result[0].dat.data_ro, s.dat.data_ro, rtol=1e-14)


def test_a_work_budget_ends_the_run_in_the_iteration_that_passes_it():
    problem = small_problem()
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0))[:2])
    sweep = 60 * problem.network.operators.nodes * problem.network.steps
    solver = TaoOptimiser(functional, limits=Limits(1000, work=12 * sweep))
    solver.solve()
    assert solver.history.reason == "work budget"
    work = solver.history.column("work")
    assert work[-1] >= 12 * sweep > work[-2]


def test_a_relative_gradient_tolerance_ends_the_run():
    problem = small_problem(control_size=1e-1)
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0))[:2])
    solver = TaoOptimiser(functional, limits=Limits(200, relative_gradient=1e-2))
    solver.solve()
    norms = solver.history.column("gradient_norm")
    assert solver.history.reason == "relative gradient tolerance"
    assert norms[-1] <= 1e-2 * norms[0] < norms[-2]


def test_a_propagation_that_overflows_is_a_typed_error_and_the_optimiser_steps_back(monkeypatch):
    exploding = small_network(T=50.0, dynamics=cn.Residual(cn.identity))
    problem = small_problem(network=exploding)
    s, b, W, beta = problem.controls()
    s.dat.data[:] = 1e200
    functional = ProjectedFunctional(problem, (s, b))
    with pytest.raises(cn.PropagationError, match="not finite.*more layers"):
        functional([s, b])
    start = problem.controls(np.random.default_rng(0), 1e-3)[:2]
    functional = ProjectedFunctional(problem, start)
    best = float(functional(start))
    # The derivative is inflated, so that the first trial steps overflow.
    honest = functional.derivative
    inflation = [1e60]

    def inflated(**keywords):
        factor = inflation.pop() if inflation else 1.0
        return [g.assign(factor * g) for g in honest(**keywords)]

    monkeypatch.setattr(functional, "derivative", inflated)
    failures = []
    evaluate = ProjectedFunctional.__call__

    def counted(self, values):
        try:
            return evaluate(self, values)
        except ArithmeticError as error:
            failures.append(error)
            raise

    monkeypatch.setattr(ProjectedFunctional, "__call__", counted)
    solver = TaoOptimiser(functional, limits=Limits(5))
    solver.solve()
    assert failures, "the trial steps must have overflowed"
    assert np.isfinite(solver.history.column("objective")).all()
    assert solver.history.last.objective <= best * (1 + 1e-12)


def test_pyadjoints_own_tao_solver_takes_the_projected_and_the_joint_functional():
    problem = small_problem()
    s, b, W, beta = problem.controls(np.random.default_rng(0))
    options = {"tao_type": "lmvm", "tao_max_it": 300, "tao_gatol": 1e-1, "tao_grtol": 1e-1}
    for functional, start in (
        (ProjectedFunctional(problem, (s, b)), [s, b]),
        (problem.reduced_functional((s, b, W, beta)), [s, b, W, beta]),
    ):
        before = float(functional(start))
        best = TAOSolver(MinimizationProblem(functional), options, comm=MPI.COMM_SELF).solve()
        assert float(functional(list(best))) < before


@pytest.mark.parallel(nprocs=[1, 2, 3])
def test_projected_value_and_derivative_do_not_depend_on_the_rank_count():
    figures = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        problem = small_problem(network=small_network(comm=comm))
        s, b, _, _ = problem.controls(np.random.default_rng(0), 0.3)
        functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
        value = float(functional([s, b]))
        figures.append((value, *(g.dat.data_ro.copy() for g in functional.derivative())))
    for split, whole in zip(*figures, strict=True):
        difference = np.abs(split - whole).max() / np.abs(whole).max()
        assert MPI.COMM_WORLD.allreduce(float(difference), op=MPI.MAX) < 1e-8
