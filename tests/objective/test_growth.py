"""The process does not grow with the number of objects that came and went."""

import gc
from functools import cache

import numpy as np
import pytest
from firedrake import FunctionSpace
from mpi4py import MPI
from support.networks import blobs, square

import ctrlnet as cn


def mebibytes():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20


def objects(space, coarse):
    """Operators, controls, a network, a readout and a problem, evaluated once."""
    operators = cn.low_order_operators(space)
    network = cn.Network(operators, cn.ControlSpace(1.0, 3, operators, 2))
    problem = cn.TrainingProblem(cn.Readout(network, 3, coarse), blobs(4), control_size=1e-3, weights_size=1e-2)
    functional = problem.reduced_functional(problem.controls(np.random.default_rng(0), 0.1))
    functional.derivative()


@cache
def network_on(space):
    operators = cn.low_order_operators(space)
    return cn.Network(operators, cn.ControlSpace(1.0, 3, operators, 2))


def readouts(space, coarse):
    """A readout of one network, by interpolation between meshes."""
    cn.Readout(network_on(space), 3, coarse)


def check_growth(objects, count=30):
    space, coarse = FunctionSpace(square(6), "CG", 1), FunctionSpace(square(2), "CG", 1)
    sizes = []
    for _ in range(3):
        for _ in range(count):
            objects(space, coarse)
        sizes.append(mebibytes())
    each = (sizes[2] - sizes[1]) / count
    assert space.mesh().comm.allreduce(each, MPI.MAX) < 0.1, sizes


def test_on_one_rank():
    check_growth(objects)


@pytest.mark.parallel(nprocs=2)
def test_on_ranks():
    check_growth(objects)
    check_growth(readouts)
