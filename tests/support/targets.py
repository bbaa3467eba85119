"""One small problem for every kind of target, its data functions of place and number: the same on any rank count."""

from __future__ import annotations

import numpy as np
from firedrake import COMM_WORLD, Function, FunctionSpace, SpatialCoordinate, VectorFunctionSpace

import ctrlnet as cn
from ctrlnet.fields import Classes, NodalClasses, NodalFields, Numbers
from ctrlnet.objective import LeastSquares, Logistic, NodalReadout
from support.networks import blobs, small_network, square
from support.ranks import smooth

COUNT = 20
IMAGES = ("weighted classes", "class vectors", "numbers", "relative numbers", "answers")
NODES = ("classes at nodes", "masked classes at nodes", "field", "masked field", "relative field")
KINDS = IMAGES + NODES


def places(V):
    """Coordinates (owned nodes, dim) of the nodes of a space."""
    mesh = V.mesh()
    X = Function(VectorFunctionSpace(mesh, V.ufl_element())).interpolate(SpatialCoordinate(mesh))
    return X.dat.data_ro.reshape(-1, mesh.geometric_dimension)


def _at_nodes(V, count, kind):
    x, number = places(V), np.arange(count)[:, None]
    wave = np.sin(x[:, 0] + 0.4 * number) + np.cos(0.7 * x[:, 1] - 0.3 * number)
    if "classes" in kind:
        labels = np.digitize(wave, [-0.4, 0.5])
        if kind == "classes at nodes":
            return NodalClasses(V, labels, 3)
        seen = np.cos(x[:, 1] + number) > -0.5
        return NodalClasses(V, np.where(seen, labels, -1), 3, weights=[1.0, 2.0, 0.5], mask=seen)
    values = np.stack([wave, 0.5 * np.cos(wave) + 1.0], axis=1)
    if kind == "masked field":
        seen = np.cos(x[:, 1] + number) > -0.5
        return NodalFields(V, np.where(seen[:, None], values, np.nan), mask=seen)
    return NodalFields(V, values, relative=kind == "relative field")


def targets_of(kind, V, count=COUNT):
    """The targets of the blobs: of the images, or at the nodes of a space."""
    if kind in NODES:
        return _at_nodes(V, count, kind)
    labels, rng = blobs(count).labels, np.random.default_rng(4)
    if kind == "weighted classes":
        return Classes(labels, 3, weights=[1.0, 3.0, 0.5])
    if kind == "class vectors":
        return Classes(labels, 3)
    if kind == "answers":
        return Numbers(np.stack([labels == 0, labels != 2], axis=1))
    return Numbers(rng.standard_normal((count, 2)) + labels[:, None], relative=kind == "relative numbers")


def loss_of(kind):
    if kind == "answers":
        return Logistic()
    return None if "classes" in kind else LeastSquares()


def readout_of(kind, network, targets):
    if kind in NODES:
        return NodalReadout(network, targets.components)
    return cn.Readout(network, targets.components, FunctionSpace(square(2, comm=network.comm), "CG", 1))


def problem_of(kind, comm=COMM_WORLD, cells=6, count=COUNT, network=None, ensemble=None, **settings):
    """A training problem with targets of a kind."""
    network = small_network(cells, layers=2, comm=comm) if network is None else network
    targets = targets_of(kind, network.space, count)
    sample = cn.Sample(blobs(count).images, targets)
    defaults = dict(control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)
    return cn.TrainingProblem(
        readout_of(kind, network, targets), sample, loss_of(kind), ensemble=ensemble, **(defaults | settings))


def start_of(problem, scale=0.3):
    """Random controls and a random classifier, the same on any number of ranks."""
    m = problem.controls(np.random.default_rng(0), scale)
    rng = np.random.default_rng(1)
    for part, function in zip(problem.control_set, m, strict=True):
        if part.name == "W" and part.rows > 1:  # a field, whose nodes have other numbers on other ranks
            function.assign(smooth(part.space))
        elif part.name != "s":
            part.write(function, part.values(function) + 0.2 * rng.standard_normal((part.rows, part.components)))
    return m
