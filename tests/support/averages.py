"""One problem for every kind of average over a sample."""

import numpy as np
from firedrake import COMM_WORLD, FunctionSpace

import ctrlnet as cn
from ctrlnet.fields import averaged_pixels
from support.networks import blobs, small_network, square

CELLS = (6, 3, 2)
WEIGHTS = (0.5, 0.3, 0.2)
KINDS = ("one mesh", "all levels", "drawn levels")


def problem_with(kind, count=40, comm=COMM_WORLD):
    """A problem over one mesh or three, with one readout space."""
    network = small_network(CELLS[0], layers=2, comm=comm)
    readout = cn.Readout(network, 3, FunctionSpace(square(2, comm=comm), "CG", 1))
    work, sample, averages = cn.Work(), blobs(count), []
    for cells in CELLS:
        V = network.space if cells == CELLS[0] else FunctionSpace(square(cells, comm=comm), "CG", 1)
        on = readout if cells == CELLS[0] else readout.on(network.on(V))
        averages.append(cn.SampleAverage(on, sample, work=work, projection=averaged_pixels(V, (6, 6), 6 // cells)))
    problem = cn.TrainingProblem(
        readout, sample, control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2, work=work)
    levels = cn.MultilevelAverage(averages, WEIGHTS, np.random.default_rng(7))
    average = {
        "one mesh": lambda: averages[0], "all levels": lambda: levels,
        "drawn levels": lambda: levels.drawn(np.random.default_rng(1), chunk=8),
    }[kind]()
    return problem.with_average(average)


def start_of(problem):
    """Random controls and a random classifier, a function of place: the same on any number of ranks."""
    s, b, W, beta = problem.controls(np.random.default_rng(0), 0.3)
    rng = np.random.default_rng(1)
    weights = 0.1 * rng.standard_normal((problem.readout.features, problem.readout.classes))
    problem.readout.control_set["W"].write(W, weights)
    beta.dat.data[:] = [[0.1, -0.2, 0.3]]
    return [s, b, W, beta]
