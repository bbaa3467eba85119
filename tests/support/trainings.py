"""One small training of every kind, started or gone on with: what resumption is held against."""

import numpy as np
from firedrake import COMM_WORLD

import ctrlnet as cn
from ctrlnet.fields import AugmentedSample, Shift
from ctrlnet.optimise import (
    Adam,
    FirstOrder,
    JointFunctional,
    KrylovPreconditioner,
    Limits,
    ProjectedFunctional,
    SampleSchedule,
    SchurGaussNewton,
    StochasticOptimiser,
    TaoOptimiser,
    presets,
)
from support.networks import blobs, small_network, small_problem, square


def start_of(problem):
    return problem.controls(np.random.default_rng(0), 0.3)


def _tao(functional_of, **settings):
    def train(problem, iterations=8, **run):
        functional = functional_of(problem, start_of(problem))
        made = {n: s(functional) if n in ("initial_hessian", "preconditioner") else s for n, s in settings.items()}
        solver = TaoOptimiser(functional, limits=Limits(iterations), **made, **run)
        found = solver.solve()
        return functional.all_controls(found), solver.history
    return train


def _growing(problem, iterations=8, **run):
    functional = ProjectedFunctional(problem, start_of(problem))
    solver = StochasticOptimiser(
        functional, np.random.default_rng(1), SampleSchedule(10, 3.0, 3), limits=Limits(iterations), **run)
    found = solver.solve()
    return solver.functional.all_controls(found), solver.history


def _level(problem, iterations=8, **run):
    result = cn.train_level(
        problem, start_of(problem), iterations=iterations, rng=np.random.default_rng(1),
        schedule=SampleSchedule(10, 3.0, 3), **run)
    return result.controls, result.history


def _adam(problem, iterations=5, **run):
    rng = np.random.default_rng(2)
    sample = AugmentedSample(problem.average.sample, [Shift(1)], rng)
    problem = problem.with_average(cn.SampleAverage(problem.readout, sample, work=problem.work))
    functional = JointFunctional(problem, start_of(problem))
    solver = FirstOrder(functional, rng, Adam(), rate=0.05, batch=7, limits=Limits(iterations), **run)
    return functional.all_controls(solver.solve()), solver.history


def _levels_by_adam(problem, iterations=5, **run):
    network, rng = problem.network, np.random.default_rng(2)
    coarse = network.on(network.space.reconstruct(mesh=square(3, comm=network.comm)))
    work, sample = cn.Work(), problem.average.sample
    averages = [cn.SampleAverage(problem.readout, sample, work=work),
                cn.SampleAverage(problem.readout.on(coarse), sample.averaged(2), work=work)]
    problem = problem.with_average(cn.MultilevelAverage(averages, [0.4, 0.6], rng))
    functional = JointFunctional(problem, start_of(problem))
    solver = FirstOrder(functional, rng, Adam(), rate=0.05, batch=7, limits=Limits(iterations), **run)
    return functional.all_controls(solver.solve()), solver.history


def _multiscale(problem, iterations=4, callback=None, **run):
    space = problem.network.control_space
    coarse = small_problem(3, network=problem.network.on(problem.network.space.reconstruct(mesh=square(3))))
    coarse = cn.TrainingProblem(
        coarse.readout, blobs(60).averaged(2), control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)
    fine = cn.TrainingProblem(
        problem.readout.on(problem.network.with_depth(space.finer())), blobs(60), control_size=1e-3,
        weights_gradient=1e-2, weights_size=1e-2)
    results = cn.train_multiscale(
        [coarse, problem, fine], start_of(coarse), iterations=iterations, rng=np.random.default_rng(1),
        schedule=SampleSchedule(10, 3.0, 2), callback=None if callback is None else lambda _, i: callback(i), **run)
    history = results[-1].history
    history.iterations[:0] = [i for r in results[:-1] for i in r.history.iterations]
    return results[-1].controls, history


TRAININGS = {
    "L-BFGS, projected": _tao(ProjectedFunctional),
    "L-BFGS, joint": _tao(JointFunctional),
    "conjugate gradients": _tao(ProjectedFunctional, parameters=presets.CONJUGATE_GRADIENT),
    "trust region, Gauss-Newton": _tao(
        ProjectedFunctional, parameters=presets.TRUST_REGION, preconditioner=lambda f: KrylovPreconditioner()),
    "line search, Hessian": _tao(JointFunctional, parameters=presets.LINE_SEARCH, curvature="hessian"),
    "explicit initial Hessian": _tao(
        ProjectedFunctional, refresh=2, initial_hessian=lambda f: SchurGaussNewton(
            f, f.problem.coordinates(f.names), np.random.default_rng(3), images=20)),
    "growing samples": _growing,
    "one level": _level,
    "Adam": _adam,
    "Adam on two meshes": _levels_by_adam,
    "multiscale": _multiscale,
}


def problem_of(count=60, comm=COMM_WORLD):
    network = small_network(comm=comm)
    network = cn.Network(
        network.operators, cn.ControlSpace(1.5, 3, network.operators, 2, refinements=1))
    return small_problem(network=network, count=count)
