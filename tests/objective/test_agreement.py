"""What must be the same on all ranks is broadcast or refused, on all ranks alike."""

import numpy as np
import pytest
from firedrake import COMM_WORLD
from support.networks import blobs, small_problem

import ctrlnet as cn
from ctrlnet.fields import AugmentedSample, Noise, Numbers
from ctrlnet.optimise import FirstOrder, JointFunctional, Limits, ProjectedFunctional

on_some = pytest.mark.parallel(nprocs=[2, 3])
RANK = COMM_WORLD.rank


@on_some
def test_a_draw_is_that_of_the_first_rank():
    problem = small_problem()
    m = problem.controls(np.random.default_rng(100 + RANK), 0.3)
    expected = problem.network.control_space.random(np.random.default_rng(100), 0.3)
    assert np.array_equal(m.s.dat.data_ro, expected.s.dat.data_ro)


@on_some
@pytest.mark.parametrize("name", ["s", "b", "beta"])
def test_controls_that_differ_are_refused(name):
    problem = small_problem()
    m = problem.controls()
    m[name].assign(0.1 * (RANK == COMM_WORLD.size - 1))
    for use in (problem.functional, problem.reduced_functional, lambda m: JointFunctional(problem, m)):
        with pytest.raises(ValueError, match=f"Controls must be the same on all ranks; {name} of rank"):
            use(m)
    if name != "beta":  # a classifier is the start of the first inner solve alone
        for use in (lambda m: ProjectedFunctional(problem, m), lambda m: cn.train_level(problem, m, iterations=1)):
            with pytest.raises(ValueError, match="must be the same on all ranks"):
                use(m)


@on_some
def test_generators_that_differ_are_refused():
    problem = small_problem()
    m = problem.controls(np.random.default_rng(0))
    own = np.random.default_rng(RANK)
    with pytest.raises(ValueError, match="Generators of random numbers must be the same.*Seed them alike"):
        cn.train_level(problem, m, iterations=1, rng=own, schedule=cn.optimise.SampleSchedule(10))
    with pytest.raises(ValueError, match="Generators of random numbers"):
        FirstOrder(JointFunctional(problem, m), own, batch=10, limits=Limits(1))
    changing = AugmentedSample(problem.average.sample, [Noise(0.1)], own)
    at = problem.with_average(cn.SampleAverage(problem.readout, changing))
    with pytest.raises(ValueError, match="Generators of random numbers"):
        FirstOrder(JointFunctional(at, m), np.random.default_rng(0), batch=10, limits=Limits(1))


@on_some
def test_samples_that_differ_are_refused():
    whole = blobs(60)
    problem = small_problem()
    shard = whole.chosen(np.arange(RANK, 60, COMM_WORLD.size))
    other_labels = cn.Sample(whole.images, np.roll(whole.labels, RANK), 3)
    for sample, what in ((shard, "images|targets"), (blobs(60, seed=RANK), "images"), (other_labels, "targets")):
        with pytest.raises(ValueError, match=f"Samples must be the same on all ranks; .*({what})"):
            cn.TrainingProblem(problem.readout, sample)


@on_some
def test_other_counts_are_refused():
    problem = small_problem()
    with pytest.raises(ValueError, match="Samples must be the same on all ranks; number of images"):
        cn.TrainingProblem(problem.readout, blobs(30 + 3 * RANK))


def test_one_rank_has_nobody_to_agree_with():
    sample = cn.Sample(blobs(6).images, Numbers(np.ones((6, 2))))
    assert {"number of images", "images", "targets", "pixels"} <= set(sample.fingerprint())
