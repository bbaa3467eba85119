"""The same numbers on any number of ranks: what the comparisons of all rooms share."""

from pathlib import Path

import numpy as np
import pytest
from firedrake import (
    COMM_WORLD,
    Function,
    FunctionSpace,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
    as_vector,
    assemble,
    cos,
    dx,
    inner,
    sin,
)
from firedrake.adjoint import Control, ReducedFunctional
from mpi4py import MPI

from ctrlnet import ControlSpace, FixedOpening, Network, low_order_operators, propagate, stencil_operators

on_ranks = pytest.mark.parallel(nprocs=[1, 2, 3])

C, K, LAYERS = 2, 3, 3
SQUARE = Path(__file__).parents[2] / "meshes" / "square.msh"


def build_network(comm, quadrilateral, degree=0, control_cells=LAYERS):
    V = FunctionSpace(RectangleMesh(7, 6, 3.5, 3.0, quadrilateral=quadrilateral, comm=comm), "CG", 1)
    D = stencil_operators(V) if quadrilateral else low_order_operators(V)
    return Network(D, ControlSpace(0.6, control_cells, D, C, degree), steps=LAYERS, opening=FixedOpening([1.0, -0.5]))


def controls_of(network):
    """The same s and b for every communicator."""
    s, b = network.control_space.random(np.random.default_rng(1), 0.2)
    b.dat.data[:] = 0.3 * np.random.default_rng(2).standard_normal(b.dat.data_ro.shape)
    return s, b


def smooth(space, shift=0.0):
    """A Function given by its values in space, whatever the numbering of nodes."""
    x, y = SpatialCoordinate(space.mesh())
    values = [sin((k + 1) * x + shift) + cos(y - 0.3 * k) for k in range(space.value_size)]
    return Function(space).interpolate(as_vector(values))


def in_order_of_place(function_or_cofunction, space):
    """All ranks' values (nodes, components), sorted by the nodes' coordinates, on every rank."""
    mesh = space.mesh()
    X = Function(VectorFunctionSpace(mesh, "CG", 1)).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    values = function_or_cofunction.dat.data_ro.reshape(X.shape[0], function_or_cofunction.function_space().value_size)
    places, values = (np.concatenate(mesh.comm.allgather(a)) for a in (X, values))
    return values[np.lexsort(np.rint(places * 1e6).T)]


def propagation_numbers(network, annotation):
    """State, gradient and Hessian product of a functional of Y(T), with Y0 among the controls."""
    point = [*controls_of(network), smooth(network.state_space(2))]
    direction = [0.1 * p for p in point[:2]] + [smooth(network.state_space(2), 1.0)]
    direction = [Function(p.function_space()).assign(d) for p, d in zip(point, direction, strict=True)]
    with annotation() as tape:
        Y = propagate(network, point[:-1], point[-1])
        J = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in point], tape=tape)
    out = {"Y": in_order_of_place(Y, network.space)}
    for what, parts in (("dJ", J.derivative()), ("H d", J.hessian(direction))):
        out |= {f"{what} {n}": p.dat.data_ro.copy() for n, p in zip("sb", parts, strict=False)}
        out[f"{what} Y0"] = in_order_of_place(parts[2], network.space)
    return out


def assert_equal(mine, reference, tolerance=1e-12):
    """Collective: a rank that failed alone would leave the others waiting."""
    assert list(mine) == list(reference)
    for name, values in reference.items():
        size = np.abs(values).max()
        error = np.abs(mine[name] - values).max() / size
        error = COMM_WORLD.allreduce(float(error), op=MPI.MAX)
        ranks = COMM_WORLD.size
        assert size > 0 and error <= tolerance, f"{name} on {ranks} ranks differs from one rank by {error:.1e}"
