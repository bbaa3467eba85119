"""Problems whose data are smooth functions of place, the same on any mesh: what error estimates are tested on."""

from __future__ import annotations

import numpy as np
from firedrake import COMM_WORLD, Function, FunctionSpace, RectangleMesh, SpatialCoordinate, as_vector, cos, sin

import ctrlnet as cn
from ctrlnet.fields import Classes, NodalClasses, NodalFields, Numbers
from ctrlnet.operators import sphere_hierarchy

COUNT = 6


class Waves:
    """Inputs that are waves, sampled at the nodes of any mesh."""

    channels = 1

    def __len__(self):
        return COUNT

    def onto(self, V):
        return _Sampled(V)

    @property
    def pixels(self):
        raise ValueError("waves have no pixels")


class _Sampled:
    def __init__(self, V):
        self.V = V

    def nodal(self, inputs, start, stop):
        return np.stack([wave(self.V, i).dat.data_ro for i in range(start, stop)], axis=-1)[:, None, :]


def wave(V, number):
    x = SpatialCoordinate(V.mesh())
    return Function(V).interpolate(sin((1 + number % 3) * x[0]) * cos(0.7 * x[1] + number))


class WaveTargets:
    """Targets at nodes, as functions of place on any mesh."""

    are_classes = False

    def __init__(self, kind):
        self.components = 2 if kind == "field" else 3
        self._kind = kind

    def __len__(self):
        return COUNT

    def of_images(self):
        raise ValueError("at nodes")

    def at_nodes(self, V):
        waves = np.stack([wave(V, i + 1).dat.data_ro for i in range(COUNT)])
        if self._kind == "field":
            return NodalFields(V, np.stack([waves, waves**2], axis=1))
        # One class an image: of classes that jump in space the loss is not smooth.
        return NodalClasses(V, np.broadcast_to(np.arange(COUNT)[:, None] % 3, waves.shape).copy(), 3)


def space_of(mesh_kind, cells, comm=COMM_WORLD):
    if mesh_kind == "sphere":
        return FunctionSpace(sphere_hierarchy(1.0, cells, comm)[-1], "CG", 1)
    return FunctionSpace(
        RectangleMesh(cells, cells, 3.0, 3.0, quadrilateral=mesh_kind == "quadrilaterals", comm=comm), "CG", 1)


def network_on(V, dynamics=None, integrator=None, steps=16, precision="double", T=1.0):
    """A network whose equation is well posed on any mesh: symmetric first-order coefficients, diffusion besides."""
    dynamics = cn.ReactionDiffusion(0.1) if dynamics is None else dynamics
    integrator = cn.IMEX() if integrator is None else integrator
    axes = range(V.mesh().geometric_dimension)
    surface = V.mesh().geometric_dimension != V.mesh().topological_dimension
    D = (cn.low_order_operators(V) if surface else
         cn.Operators(V, [cn.operators.identity, *(cn.derivative(axis) for axis in axes)]))
    space = cn.ControlSpace(T, 4, D, 2, parameters=dynamics.parameters)
    return cn.Network(D, space, steps, dynamics, integrator, precision=precision)


def controls_of(network, seed=5):
    space, rng = network.control_space, np.random.default_rng(seed)
    m = space.zero()
    s = np.zeros((space.cells, space.operators, 2, 2))
    s[:, 0] = 0.5 * rng.standard_normal((space.cells, 2, 2))
    first = 0.15 * rng.standard_normal((space.cells, space.operators - 1, 2, 2))
    s[:, 1:] = first + np.swapaxes(first, 2, 3)
    if network.operators.mesh.geometric_dimension != network.operators.mesh.topological_dimension:
        s[:, -1] = 0.0  # Laplace-Beltrami within the activation
    m.s.dat.data[:] = s.reshape(space.cells, -1)
    m.b.dat.data[:] = 0.3 * rng.standard_normal(m.b.dat.data_ro.shape)
    return m


def readout_of(network, kind, coarse=None):
    """A readout with a classifier: of the images on a coarse mesh, or at nodes."""
    comm = network.comm
    if kind in ("field", "classes at nodes"):
        readout = cn.NodalReadout(network, 2 if kind == "field" else 3)
        W = readout.zero()
        W.W.dat.data[:] = np.random.default_rng(1).standard_normal(W.W.dat.data_ro.shape)
        return readout, W
    coarse = FunctionSpace(RectangleMesh(2, 2, 3.0, 3.0, comm=comm), "CG", 1) if coarse is None else coarse
    readout = cn.Readout(network, 2 if kind == "numbers" else 3, coarse)
    W, x = readout.zero(), SpatialCoordinate(coarse.mesh())
    W.W.interpolate(as_vector([sin(x[0] + k) + cos(x[1] * k) for k in range(W.W.function_space().value_size)]))
    return readout, W


def sample_of(kind):
    numbers = np.arange(COUNT)
    targets = {
        "classes": lambda: Classes(numbers % 3, 3, weights=[1.0, 2.0, 0.5]),
        "numbers": lambda: Numbers(np.stack([numbers % 2, numbers / 3.0], axis=1)),
    }.get(kind, lambda: WaveTargets(kind))()
    return cn.Sample(Waves(), targets)


def loss_of(kind):
    return cn.SoftmaxCrossEntropy() if "classes" in kind else cn.LeastSquares()
