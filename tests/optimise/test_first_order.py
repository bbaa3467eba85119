"""Mini-batch first-order training: update rules against their formulas, the loop, bad input, several ranks."""

import numpy as np
import pytest
from mpi4py import MPI
from support.networks import small_network, small_problem

import ctrlnet as cn
from ctrlnet.objective.linearisation import SampleLinearisation
from ctrlnet.optimise import Adam, FirstOrder, GradientDescent, JointFunctional, Limits, Nesterov
from ctrlnet.optimise.first_order import constant_rate, cosine_rate


def joint(**settings):
    problem = small_problem(**settings)
    return JointFunctional(problem, problem.controls(np.random.default_rng(0), 0.3))


def quadratic_path(rule, rate, steps):
    """x from (1, -2) on the function x.A x / 2."""
    A, x = np.diag([1.0, 10.0]), np.array([1.0, -2.0])
    step, path = rule.start(2), []
    for _ in range(steps):
        x = x + step(A @ x, rate)
        path.append(x)
    return np.array(path)


def test_update_rules_follow_their_formulas():
    A = np.diag([1.0, 10.0])
    x = np.array([1.0, -2.0])
    assert np.allclose(quadratic_path(GradientDescent(), 0.05, 1)[0], x - 0.05 * A @ x)
    assert np.allclose(quadratic_path(Nesterov(0.0), 0.05, 5), quadratic_path(GradientDescent(), 0.05, 5))
    # Nesterov's own form: the gradient at the point ahead, x_{k+1} = x_k + v, v = m v - rate grad(x_k + m v).
    y, v, ahead = x.copy(), np.zeros(2), []
    for _ in range(6):
        v = 0.9 * v - 0.02 * A @ (y + 0.9 * v)
        y = y + v
        ahead.append(y + 0.9 * v)
    assert np.allclose(quadratic_path(Nesterov(0.9), 0.02, 6), ahead)
    first = quadratic_path(Adam(), 0.1, 1)[0]
    assert np.allclose(first, x - 0.1 * np.sign(A @ x), atol=1e-6), "Adam's first step has the rate's length"
    mean = square = 0.0
    z = x.copy()
    for k in range(1, 5):
        g = A @ z
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        z = z - 0.1 * (mean / (1 - 0.9**k)) / (np.sqrt(square / (1 - 0.999**k)) + 1e-8)
    assert np.allclose(quadratic_path(Adam(), 0.1, 4)[-1], z)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), received 1.0"):
        Nesterov(1.0)
    with pytest.raises(ValueError, match="Adam needs"):
        Adam(first=1.0)


def test_the_cosine_schedule_goes_from_one_to_zero():
    assert [cosine_rate(p) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("rule, rate", [(GradientDescent(), 0.2), (Nesterov(), 0.05), (Adam(), 0.03)],
                         ids=["SGD", "Nesterov", "Adam"])
def test_training_lowers_the_objective_and_counts_batches_alone(rule, rate):
    functional = joint()
    trainer = FirstOrder(functional, np.random.default_rng(1), rule, rate=rate, batch=16, limits=Limits(12))
    found = trainer.solve()
    history = trainer.history
    assert history.reason == "iteration limit" and [i.number for i in history.iterations] == list(range(13))
    objective = history.column("objective")
    assert min(objective) < 0.85 * objective[0]
    assert float(functional(found)) == pytest.approx(min(objective), rel=1e-12), "the best controls are returned"
    # 3 batches of 16 images a pass: 48 of 60 images, forward and adjoint.
    image = functional.problem.network.operators.nodes * functional.problem.network.steps
    assert history.last.work == 12 * 48 * image * 3, "evaluations for the record do not count"


def test_full_batches_without_noise_are_gradient_descent():
    functional = joint()
    trainer = FirstOrder(functional, np.random.default_rng(1), GradientDescent(), rate=0.1, batch=60,
                         schedule=constant_rate, limits=Limits(1))
    trainer.solve()
    start = [c.control for c in functional.controls]
    functional(start)
    gradient = functional.derivative()
    moved = [f._ad_copy() for f in start]
    for f, g in zip(moved, gradient, strict=True):
        f.dat.data[:] -= 0.1 * g.dat.data_ro
    assert trainer.history.last.objective == pytest.approx(float(functional(moved)), rel=1e-12)


def test_a_batch_that_is_not_finite_halves_the_rate_and_the_run_goes_on(monkeypatch):
    functional, calls = joint(), [0]
    honest = SampleLinearisation.gradient

    def sometimes(self, *arguments, **keywords):
        calls[0] += self.count == 20
        if calls[0] == 5 and self.count == 20:
            raise cn.PropagationError("not finite")
        return honest(self, *arguments, **keywords)

    monkeypatch.setattr(SampleLinearisation, "gradient", sometimes)
    trainer = FirstOrder(functional, np.random.default_rng(1), rate=0.02, batch=20, schedule=constant_rate,
                         limits=Limits(4))
    trainer.solve()
    steps = trainer.history.column("step")
    assert steps == [0.02, 0.02, 0.01, 0.01, 0.01] and np.isfinite(trainer.history.column("objective")).all()


def test_bad_settings_are_refused():
    functional, rng = joint(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="1 to 60 images.*received batch=61"):
        FirstOrder(functional, rng, batch=61)
    with pytest.raises(ValueError, match="received batch=0"):
        FirstOrder(functional, rng, batch=0)
    with pytest.raises(ValueError, match="must be positive and finite, received -1"):
        FirstOrder(functional, rng, batch=10, rate=-1)


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_batches_and_iterates_on_several_ranks():
    found = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        functional = joint(network=small_network(comm=comm))
        trainer = FirstOrder(functional, np.random.default_rng(1), rate=0.03, batch=16, limits=Limits(3))
        s, b, _, _ = trainer.solve()
        found.append([np.array(trainer.history.column("objective")), s.dat.data_ro.copy(), b.dat.data_ro.copy()])
    for split, whole in zip(*found, strict=True):
        difference = float(np.abs(split - whole).max() / np.abs(whole).max())
        assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) < 1e-8
