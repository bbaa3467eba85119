"""Sample-average approximation: draws, growth, the acceptance test, limits, bad input, several ranks."""

import numpy as np
import pytest
from firedrake import FunctionSpace
from mpi4py import MPI
from support.networks import blobs, small_network, small_problem, square
from support.points import arrays_of, value_at

import ctrlnet as cn
from ctrlnet.objective.linearisation import SampleLinearisation
from ctrlnet.optimise import Limits, ProjectedFunctional, SampleSchedule, StochasticOptimiser


def projected(count=90, **settings):
    problem = small_problem(count=count, **settings)
    return ProjectedFunctional(problem, problem.controls(np.random.default_rng(0), 0.3)[:2], inner_tolerance=1e-12)


def test_an_average_over_chosen_images_is_that_of_their_sample():
    problem = small_problem(count=40)
    s, b, W, beta = problem.controls(np.random.default_rng(0), 0.3)
    W.dat.data[:] = np.random.default_rng(1).standard_normal(W.dat.data_ro.shape)
    arrays = problem.point((s, b, W, beta))
    chosen = np.array([3, 17, 4, 39])
    subset = problem.average.over(chosen)
    fresh = problem.on_sample(problem.average.sample.chosen(chosen))
    layers, *classifier = arrays
    one, other = subset.at(layers), fresh.at(layers)
    assert one.value(*classifier) == pytest.approx(other.value(*classifier), rel=1e-14)
    for found, expected in zip(*(arrays_of(a.gradient(*classifier)) for a in (one, other)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    # One that takes over its storage is as good, and the work is counted with the whole sample's.
    again = problem.average.over(chosen[::-1], subset)
    assert value_at(again, arrays) == pytest.approx(value_at(fresh, arrays), rel=1e-14)
    image = problem.network.operators.nodes * problem.network.steps
    assert problem.work.counts["forward"] == 8 * image and problem.work.counts["adjoint"] == 4 * image
    whole = value_at(problem.average, arrays)
    assert value_at(problem.average, arrays) == whole


def test_samples_grow_to_the_whole_and_every_iteration_knows_its_own():
    functional = projected()
    optimiser = StochasticOptimiser(
        functional, np.random.default_rng(1), SampleSchedule(15, growth=3.0, iterations=3), limits=Limits(4))
    s, b = optimiser.solve()
    images = optimiser.history.column("images")
    assert [d.images for d in optimiser.draws] == [15, 45] and images == [15] * 4 + [45] * 4 + [90] * 5
    assert optimiser.history.column("number") == [0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 10]
    assert optimiser.history.reason == "iteration limit"
    assert float(functional([s, b])) == pytest.approx(optimiser.history.last.objective, rel=1e-8)
    W, beta = optimiser.functional.classifier()
    assert functional.problem.accuracy(blobs(60, seed=5), (s, b, W, beta)) > 0.9
    assert (np.diff(optimiser.history.column("work")) >= 0).all()


def test_one_seed_gives_one_run_and_another_seed_another():
    runs = []
    for seed in (1, 1, 2):
        optimiser = StochasticOptimiser(
            projected(), np.random.default_rng(seed), SampleSchedule(15, 2.0, 2), limits=Limits(1))
        optimiser.solve()
        runs.append(optimiser.history.column("objective"))
    assert runs[0] == runs[1] != runs[2]


def test_a_draw_that_makes_held_out_images_worse_is_not_kept(monkeypatch):
    functional = projected()
    losses = iter([1.0, 2.0, 1.0, 0.5])
    honest = SampleLinearisation.value

    def value(self, *classifier):
        true = honest(self, *classifier)
        return next(losses) if self.count in (10, 20) else true

    monkeypatch.setattr(SampleLinearisation, "value", value)
    optimiser = StochasticOptimiser(
        functional, np.random.default_rng(1), SampleSchedule(20, growth=1.0, iterations=2), limits=Limits(0, work=0.0))
    kept = []
    whole, controls = functional.problem.average, [c.control for c in functional.controls]
    for _ in range(3):
        accepted, found, trial = optimiser._improve_on_a_draw(whole, 20, controls)
        kept.append(accepted)
        if accepted:
            optimiser.functional, controls = trial, found
    assert kept == [True, False, True]
    assert [(d.before, d.after) for d in optimiser.draws[1:]] == [(1.0, 2.0), (1.0, 0.5)]


def test_budgets_end_a_run_before_the_whole_sample():
    functional = projected()
    image = functional.problem.network.operators.nodes * functional.problem.network.steps
    optimiser = StochasticOptimiser(
        functional, np.random.default_rng(1), SampleSchedule(15, 2.0, 10), limits=Limits(50, work=100 * image))
    controls = optimiser.solve()
    assert optimiser.history.reason == "work budget" and optimiser.history.last.images == 15
    assert len(controls) == 2 and len(optimiser.functional.classifier()) == 2


def test_training_a_level_takes_a_generator():
    problem = small_problem(count=90)
    s, b, _, _ = problem.controls(np.random.default_rng(0))
    drawing = dict(rng=np.random.default_rng(1), schedule=SampleSchedule(30, 3.0, 4))
    result = cn.train_level(problem, (s, b), iterations=3, **drawing)
    images = result.history.column("images")
    assert images[0] == 30 and images[-1] == 90 and result.inner_seconds > 0
    assert result.history.last.objective < 0.3 * result.history.iterations[0].objective
    coarse_network = problem.network.on(FunctionSpace(square(3), "CG", 1))
    problems = [small_problem(network=coarse_network, count=90), problem]
    coarse, fine = cn.train_multiscale(
        problems, (s, b), iterations=2, rng=np.random.default_rng(1), schedule=SampleSchedule(30, 3.0, 2))
    assert set(coarse.history.column("images")) == {90} and set(fine.history.column("images")) == {30, 90}


@pytest.mark.parametrize("first, message", [
    (2, r"must hold 3 images \(one a class\) to 90 \(all of them\), received 2"),
    (91, r"must hold 3 images \(one a class\) to 90 \(all of them\), received 91"),
])
def test_samples_that_are_too_small_or_larger_than_the_data_are_refused(first, message):
    with pytest.raises(ValueError, match=message):
        StochasticOptimiser(projected(), np.random.default_rng(0), SampleSchedule(first))


def test_a_class_without_an_image_is_refused():
    problem = small_problem()
    sample = blobs(60)
    kept = sample.labels != 1
    gap = cn.TrainingProblem(problem.readout, cn.Sample(sample.images[kept], sample.labels[kept], 3))
    functional = ProjectedFunctional(gap, gap.controls()[:2])
    with pytest.raises(ValueError, match="no image of class 1; .*one of each class"):
        StochasticOptimiser(functional, np.random.default_rng(0), SampleSchedule(10))


@pytest.mark.parametrize("settings", [dict(first=0), dict(growth=0.5), dict(iterations=0), dict(held_out=2.0)])
def test_bad_schedules_are_refused(settings):
    with pytest.raises(ValueError, match="first >= 1 images, growth >= 1.*received SampleSchedule"):
        SampleSchedule(**settings)


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_draws_and_iterates_on_several_ranks():
    found = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        functional = projected(network=small_network(comm=comm))
        optimiser = StochasticOptimiser(
            functional, np.random.default_rng(1), SampleSchedule(15, 2.0, 2), limits=Limits(2))
        s, b = optimiser.solve()
        found.append([np.array(optimiser.history.column("objective")), s.dat.data_ro.copy(), b.dat.data_ro.copy()])
    for split, whole in zip(*found, strict=True):
        difference = float(np.abs(split - whole).max() / np.abs(whole).max())
        assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) < 1e-8
