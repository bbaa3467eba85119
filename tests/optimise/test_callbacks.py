"""Callbacks: they see the controls, end a run by True, and what they raise arrives as itself, on all ranks."""

import numpy as np
import pytest
from firedrake import COMM_WORLD
from support.ranks import on_ranks
from support.trainings import TRAININGS, problem_of

import ctrlnet as cn
from ctrlnet.optimise import presets


class Mine(Exception):
    """An exception of the user's own, with more than a message."""

    def __init__(self, number, said):
        super().__init__(number, said)
        self.number = number


@pytest.mark.parametrize("name", TRAININGS)
def test_a_callback_sees_the_controls_of_the_iterate(name):
    problem, seen = problem_of(), []

    def callback(iteration):
        m = {n: f.dat.data_ro.copy() for n, f in iteration.controls.by_name().items()}
        seen.append((iteration, m))

    found, history = TRAININGS[name](problem, iterations=3, callback=callback)
    assert len(seen) == len(history.iterations)
    assert all(i.controls is None for i in history.iterations)  # or a history would hold all of them for ever
    best = min((i for i, _ in seen if i.images == seen[-1][0].images), key=lambda i: i.objective)
    m = next(m for i, m in seen if i is best)
    assert set(m) == {"s", "b", "W", "beta"}
    if name != "multiscale":
        for control, values in m.items():
            assert np.allclose(values, found[control].dat.data_ro, rtol=1e-10, atol=1e-12), control


@pytest.mark.parametrize("name", [n for n in TRAININGS if n != "multiscale"])  # where it ends a level, below
def test_true_ends_the_run(name):
    _, history = TRAININGS[name](problem_of(), callback=lambda i: i.number == 2)
    assert history.reason == "stopped by the callback" and history.last.number == 2


def test_true_ends_a_level_of_several(tmp_path):
    problem = problem_of()
    results = cn.train_multiscale(
        [problem, problem], problem.controls(np.random.default_rng(0)), iterations=3,
        callback=lambda level, i: level == 0 and i.number == 1)
    assert [r.history.last.number for r in results] == [1, 3]


@pytest.mark.parametrize("value", [None, 1, "yes", np.float64(2.0)])
def test_nothing_but_true_ends_it(value):
    _, history = TRAININGS["one level"](problem_of(), iterations=2, callback=lambda i: value)
    assert history.reason == "iteration limit"


@on_ranks
def test_an_exception_arrives_as_itself_on_all_ranks():
    def callback(iteration):
        if iteration.number == 1 and COMM_WORLD.rank == COMM_WORLD.size - 1:
            raise Mine(7, "stop here")

    for name in ("L-BFGS, projected", "trust region, Gauss-Newton", "one level", "Adam", "multiscale"):
        with pytest.raises(Mine, match="stop here") as caught:
            TRAININGS[name](problem_of(), callback=callback)
        assert caught.value.number == 7


@on_ranks
def test_true_on_one_rank_ends_the_run_on_all():
    _, history = TRAININGS["one level"](
        problem_of(), callback=lambda i: i.number == 2 and COMM_WORLD.rank == COMM_WORLD.size - 1)
    assert history.reason == "stopped by the callback" and history.last.number == 2


def test_an_exception_that_cannot_be_sent_is_told():
    def callback(iteration):
        class Local(Exception):
            pass

        raise Local("only here")

    with pytest.raises(Exception, match="only here"):
        TRAININGS["one level"](problem_of(), callback=callback)


def test_an_exception_in_an_evaluation_arrives_as_itself(monkeypatch):
    from ctrlnet.optimise import ProjectedFunctional, TaoOptimiser

    problem = problem_of()
    for kind, options in (("derivative", {}), ("gauss_newton", presets.TRUST_REGION)):
        functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0)))
        solver = TaoOptimiser(functional, options or presets.QUASI_NEWTON)

        def broken(*_, **__):
            raise Mine(3, "no derivative today")

        monkeypatch.setattr(functional, kind, broken)
        with pytest.raises(Mine, match="no derivative today"):
            solver.solve()


@pytest.mark.parametrize("options", [presets.TRUST_REGION, presets.LINE_SEARCH])
def test_newtons_methods_take_the_mean_over_several_meshes(options):
    from support.networks import square

    from ctrlnet.optimise import Limits, ProjectedFunctional, TaoOptimiser

    problem = problem_of()
    network = problem.network
    coarse = network.on(network.space.reconstruct(mesh=square(3)))
    work, sample = cn.Work(), problem.average.sample
    averages = [cn.SampleAverage(problem.readout, sample, work=work),
                cn.SampleAverage(problem.readout.on(coarse), sample.averaged(2), work=work)]
    problem = problem.with_average(cn.MultilevelAverage(averages, [0.5, 0.5]))
    solver = TaoOptimiser(
        ProjectedFunctional(problem, problem.controls(np.random.default_rng(0), 0.3)), options, Limits(4))
    solver.solve()
    assert solver.history.last.objective < solver.history.iterations[0].objective
