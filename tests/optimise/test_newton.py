"""Newton's methods through TAO: orders of convergence, early ends, several ranks."""

import os
import signal

import numpy as np
import pytest
from mpi4py import MPI
from pyadjoint import taylor_to_dict
from support.networks import blobs, small_network, small_problem

import ctrlnet as cn
from ctrlnet.optimise import (
    JointFunctional,
    KrylovPreconditioner,
    Limits,
    ProjectedFunctional,
    SchurGaussNewton,
    TaoOptimiser,
    presets,
)


def projected(problem=None, seed=0, **settings):
    problem = small_problem() if problem is None else problem
    s, b, _, _ = problem.controls(np.random.default_rng(seed), 0.3)
    return ProjectedFunctional(problem, (s, b), inner_tolerance=1e-12, **settings)


def normal_like(functions, seed):
    rng = np.random.default_rng(seed)
    out = [f._ad_copy() for f in functions]
    for f in out:
        f.dat.data[:] = rng.standard_normal(f.dat.data_ro.shape)
    return out


@pytest.mark.parametrize("names", [("s", "b", "W", "beta"), ("W", "beta"), ("s",)], ids="+".join)
def test_the_joint_functional_has_taylor_order_two_and_three(names, assert_taylor):
    problem = small_problem(network=small_network(basis=cn.stencil_operators))
    held = [f.assign(0.3 * f) for f in normal_like(problem.controls(), 4)]
    functional = JointFunctional(problem, held, names=names)
    start = normal_like([c.control for c in functional.controls], 1)
    start = [f.assign(0.2 * f) for f in start]
    assert_taylor(functional, start, [f.assign(0.3 * f) for f in normal_like(start, 2)])
    assert functional.all_controls(start)[0] is (start[0] if "s" in names else functional._held["s"])


def test_gauss_newton_gives_order_three_where_the_residual_is_zero():
    """Of the projected functional: J^T H J is the joint Hessian there, and so are their Schur complements."""
    problem = small_problem(loss=cn.LeastSquares(), control_size=0.0, weights_gradient=1e-10, weights_size=1e-10)
    rng = np.random.default_rng(0)
    s, b, W, beta = problem.controls(rng, 0.3)
    W.dat.data[:] = rng.standard_normal(W.dat.data_ro.shape)
    scores = problem.average.scores(*problem.point((s, b, W, beta)))

    class Fitted(cn.LeastSquares):
        """Distance to the scores at the start instead of to the unit vectors."""

        def value(self, c, labels, weights):
            return float(0.5 * weights @ ((c - scores) ** 2).sum(axis=0))

        def gradient(self, c, labels, weights):
            return weights * (c - scores)

    problem.average.loss = Fitted()
    functional = ProjectedFunctional(problem, (s, b, W, beta), inner_tolerance=1e-15)
    direction = normal_like([s, b], 3)
    functional.hessian = lambda m_dot, *_, **__: functional.gauss_newton(m_dot)
    rates = taylor_to_dict(functional, [s, b], direction)
    assert min(rates["R0"]["Residual"]) > 1e-12 and min(rates["R2"]["Rate"]) >= 2.9, rates


def test_newton_converges_quadratically_where_the_problem_is_convex():
    """Frozen s, b: the classifier alone, by TAO's Newton with the full Hessian and exact Krylov solves."""
    problem = small_problem(weights_size=1e-3, weights_gradient=1e-3)
    controls = problem.controls(np.random.default_rng(0), 0.3)
    functional = JointFunctional(problem, controls, names=("W", "beta"))
    optimiser = TaoOptimiser(
        functional, presets.LINE_SEARCH | {"tao_nls_ksp_max_it": 500}, Limits(30, relative_gradient=1e-9),
        curvature="hessian", forcing=1e-12)
    optimiser.solve()
    norms = np.array(optimiser.history.column("gradient_norm"))
    assert optimiser.history.reason == "relative gradient tolerance"
    steps = np.array(optimiser.history.column("step"))[1:]
    ends = norms[-4:]
    orders = np.log(ends[2:] / ends[1:-1]) / np.log(ends[1:-1] / ends[:-2])
    assert steps[-1] == 1.0 and max(orders) >= 1.8, f"|g_k+1| ~ |g_k|^2 near the minimum; observed orders {orders}"
    # Gauss-Newton is the Hessian here: scores are linear in W.
    again = TaoOptimiser(functional, presets.LINE_SEARCH, Limits(30, relative_gradient=1e-8), forcing=1e-10)
    again.solve()
    assert again.history.last.objective == pytest.approx(optimiser.history.last.objective, rel=1e-9)


@pytest.mark.parametrize("kind", ["ntr", "nls", "ntl", "bntr"])
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_taos_newton_types_reach_the_same_minimum(kind, curvature):
    functional = projected(small_problem(control_size=0.3))
    best = TaoOptimiser(functional, limits=Limits(100, relative_gradient=1e-6))
    best.solve()
    options = {"tao_type": kind, f"tao_{'bnk' if kind == 'bntr' else kind}_ksp_type": "stcg"}
    found = TaoOptimiser(
        projected(functional.problem), options, Limits(150, relative_gradient=1e-3), curvature=curvature)
    found.solve()
    assert found.history.reason == "relative gradient tolerance", str(found.history)
    assert found.history.last.objective == pytest.approx(best.history.last.objective, rel=1e-3)
    assert sum(found.history.column("krylov")) > 0


@pytest.mark.parametrize("kind", ["lmvm", "blmvm", "bqnls"])
def test_quasi_newton_with_the_explicit_matrix_needs_fewer_iterations(kind):
    counts = {}
    for name in ("plain", "schur"):
        functional = projected(small_problem(control_size=0.3))
        coordinates = functional.problem.coordinates(functional.names)
        schur = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 60, 3)
        optimiser = TaoOptimiser(functional, {"tao_type": kind}, Limits(80, relative_gradient=1e-5),
                                 coordinates=coordinates, initial_hessian=schur if name == "schur" else None)
        optimiser.solve()
        assert optimiser.history.reason == "relative gradient tolerance", str(optimiser.history)
        counts[name] = optimiser.history.last.number
    assert counts["schur"] < 0.8 * counts["plain"], counts


def test_joint_methods_lower_the_objective():
    for preset in (presets.QUASI_NEWTON, presets.CONJUGATE_GRADIENT, presets.TRUST_REGION):
        problem = small_problem()
        functional = JointFunctional(problem, problem.controls(np.random.default_rng(0), 0.3))
        optimiser = TaoOptimiser(functional, preset, Limits(8))
        optimiser.solve()
        objective = optimiser.history.column("objective")
        assert objective[-1] < 0.7 * objective[0] and (np.diff(objective) <= 1e-14).all()


def test_krylov_vectors_of_the_solve_before_precondition_the_next():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((40, 40))
    H = A @ A.T / 40 + np.diag(np.geomspace(1e-2, 10, 40))

    def iterations(preconditioner):
        x, r = np.zeros(40), rng_b.copy()
        z = preconditioner.solve(r)
        p, rz = z, r @ z
        for k in range(1, 200):
            Hp = H @ p
            preconditioner.saw(p, Hp)
            step = rz / (p @ Hp)
            x, r = x + step * p, r - step * Hp
            if np.linalg.norm(r) < 1e-2 * np.linalg.norm(rng_b):
                return k
            z = preconditioner.solve(r)
            rz, old = r @ z, rz
            p = z + rz / old * p
        return 200

    preconditioner = KrylovPreconditioner(pairs=30)
    rng_b = rng.standard_normal(40)
    first = iterations(preconditioner)
    preconditioner.renew()
    rng_b = rng.standard_normal(40)
    second = iterations(preconditioner)
    assert second < 0.7 * first, (first, second)
    P = np.array([preconditioner.solve(e) for e in np.eye(40)])
    assert np.abs(P - P.T).max() < 1e-10 * np.abs(P).max() and np.linalg.eigvalsh(P).min() > 0
    with pytest.raises(ValueError, match="pairs must not be negative, received -1"):
        KrylovPreconditioner(pairs=-1)


def test_a_preconditioned_newton_run_takes_fewer_products():
    totals = []
    for preconditioner in (None, KrylovPreconditioner()):
        functional = projected(small_problem(control_size=1e-2))
        optimiser = TaoOptimiser(functional, presets.TRUST_REGION, Limits(12), forcing=1e-3, curvature="hessian",
                                 preconditioner=preconditioner)
        optimiser.solve()
        totals.append((sum(optimiser.history.column("krylov")), optimiser.history.last.objective))
    assert totals[1][0] < totals[0][0], totals


def test_forcing_follows_the_gradient():
    """Eisenstat and Walker's idea: few products far from the minimum, more the nearer it is."""
    asked, products = [], {}

    def forcing(relative_gradient):
        asked.append(relative_gradient)
        return min(0.5, relative_gradient)

    for name, choice in (("inexact", forcing), ("exact", 1e-8)):
        functional = projected(small_problem(control_size=0.3))
        optimiser = TaoOptimiser(functional, presets.TRUST_REGION, Limits(40, relative_gradient=1e-5),
                                 curvature="hessian", forcing=choice)
        optimiser.solve()
        assert optimiser.history.reason == "relative gradient tolerance"
        products[name] = optimiser.history.column("krylov")[1:]
    assert asked[0] == 1.0 and asked[-1] < 0.1, "it is told the gradient's norm over its first value"
    assert sum(products["inexact"]) < sum(products["exact"]), products


# How runs end, and what goes wrong.


def test_limits_end_a_run_with_their_reason():
    functional = projected()
    optimiser = TaoOptimiser(functional, limits=Limits(1000, seconds=0.0))
    optimiser.solve()
    assert optimiser.history.reason == "time budget" and len(optimiser.history.iterations) == 1
    for bad in (dict(iterations=-1), dict(work=-1.0), dict(seconds=-1.0), dict(relative_gradient=-1e-3)):
        with pytest.raises(ValueError, match=f"limit {next(iter(bad))} must not be negative, received -"):
            Limits(**bad)


def test_ctrl_c_ends_the_run_after_the_iteration_with_the_best_controls():
    functional = projected()

    def interrupt(iteration):
        if iteration.number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    optimiser = TaoOptimiser(functional, limits=Limits(1000), callback=interrupt)
    found = optimiser.solve()
    assert optimiser.history.reason == "interrupted" and optimiser.history.last.number == 3
    assert float(functional(found)) == pytest.approx(min(optimiser.history.column("objective")), rel=1e-9)
    assert signal.getsignal(signal.SIGINT) is before


class FailsSometimes:
    """A functional that raises at chosen evaluations."""

    def __init__(self, functional, when):
        self._functional, self._when, self.calls, self.failures = functional, when, 0, 0

    def __getattr__(self, name):
        return getattr(self._functional, name)

    def __call__(self, values):
        self.calls += 1
        if self.calls in self._when:
            self.failures += 1
            raise cn.PropagationError("not finite")
        return self._functional(values)


@pytest.mark.parametrize("preset", [presets.QUASI_NEWTON, presets.TRUST_REGION, presets.LINE_SEARCH,
                                    presets.CONJUGATE_GRADIENT], ids=lambda p: p["tao_type"])
def test_a_nan_in_a_sweep_shortens_the_step_and_the_run_goes_on(preset):
    functional = FailsSometimes(projected(), (2, 3))
    optimiser = TaoOptimiser(functional, preset, Limits(8))
    optimiser.solve()
    objective = optimiser.history.column("objective")
    assert functional.failures == 2 and optimiser.history.last.number == 8
    assert np.isfinite(objective).all() and objective[-1] < objective[0] and (np.diff(objective) <= 1e-13).all()
    with pytest.raises(cn.PropagationError):
        TaoOptimiser(FailsSometimes(projected(), (1,)), preset, Limits(8)).solve()


def test_a_search_without_descent_ends_the_run_with_the_best_controls():
    functional = FailsSometimes(projected(), range(4, 10_000))
    optimiser = TaoOptimiser(functional, limits=Limits(50))
    optimiser.solve()
    assert optimiser.history.reason == "line search found no descent"
    best = min(optimiser.history.column("objective"))
    assert optimiser.course.best is not None and best < optimiser.history.iterations[0].objective


def test_the_history_holds_what_a_run_did():
    functional = projected()
    problem = functional.problem
    held_out = problem.on_sample(blobs(30, seed=3))

    def accuracies(controls):
        return {"test": held_out.accuracy(*problem.point(controls))}

    optimiser = TaoOptimiser(functional, presets.TRUST_REGION, Limits(5), accuracies=accuracies)
    optimiser.solve()
    history = optimiser.history
    for i in history.iterations:
        assert i.objective == pytest.approx(i.loss + i.regularisation) and i.regularisation > 0
        assert i.images == 60 and 0 <= i.accuracies["test"] <= 1
    assert (np.diff(history.column("seconds")) > 0).all()
    last = history.last
    costs = {"forward": 1, "adjoint": 2, "tangent": 2, "second_order": 5}
    assert last.work == sum(costs[k] * v for k, v in last.sweeps.items()) == problem.work.total
    sweep = 60 * problem.network.operators.nodes * problem.network.steps
    assert last.sweeps["tangent"] == sum(history.column("krylov")) * sweep, "one tangent sweep a Krylov iteration"
    assert "krylov" in str(history) and "test %" in str(history)
    assert history.column("test") == [i.accuracies["test"] for i in history.iterations]
    assert history.as_dict()["iterations"][-1]["regularisation"] == pytest.approx(last.regularisation)
    target = history.iterations[2].objective
    assert history.reached("objective", target).objective == target and history.reached("loss", -1.0) is None


def test_bad_settings_are_refused():
    functional = projected()
    with pytest.raises(ValueError, match="'gauss_newton' or 'hessian', received 'fisher'"):
        TaoOptimiser(functional, curvature="fisher")
    with pytest.raises(ValueError, match="at least 1 iteration, received 0"):
        TaoOptimiser(functional, refresh=0)
    with pytest.raises(ValueError, match="belongs to a quasi-Newton method.*received tao_type 'ntr'"):
        TaoOptimiser(functional, presets.TRUST_REGION, initial_hessian=object())
    with pytest.raises(ValueError, match="named s, b, W, beta; received"):
        JointFunctional(functional.problem, functional.problem.controls(), names=("kernel",))


@pytest.mark.parallel(nprocs=[1, 2, 3])
def test_the_same_iterates_on_any_number_of_ranks():
    """Joint L-BFGS with W on its mesh, projected Newton, and projected L-BFGS with the explicit matrix."""
    found = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        problem = small_problem(network=small_network(comm=comm))
        controls = problem.controls(np.random.default_rng(0), 0.3)
        figures = []
        optimiser = TaoOptimiser(JointFunctional(problem, controls), limits=Limits(6))
        s, b, _, _ = optimiser.solve()
        figures += [optimiser.history.column("objective"), s.dat.data_ro.copy(), b.dat.data_ro.copy()]
        functional = ProjectedFunctional(problem, controls[:2], inner_tolerance=1e-13)
        optimiser = TaoOptimiser(functional, presets.TRUST_REGION, Limits(3))
        s, b = optimiser.solve()
        figures += [optimiser.history.column("objective"), s.dat.data_ro.copy(), b.dat.data_ro.copy()]
        coordinates = problem.coordinates(functional.names)
        initial = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 20, 2, damping=1.0)
        optimiser = TaoOptimiser(
            functional, limits=Limits(4), coordinates=coordinates, initial_hessian=initial, refresh=2)
        s, b = optimiser.solve()
        figures += [optimiser.history.column("objective"), s.dat.data_ro.copy()]
        found.append([np.array(f) for f in figures])
    for split, whole in zip(*found, strict=True):
        difference = float(np.abs(split - whole).max() / np.abs(whole).max())
        assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) < 1e-8
