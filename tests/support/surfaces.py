"""Spherical harmonics, networks on spheres, and rotations of both."""

import numpy as np
import sympy
from firedrake import Function, FunctionSpace, SpatialCoordinate, VectorFunctionSpace, as_vector, cos, sin

import ctrlnet as cn
from ctrlnet.operators import sphere_hierarchy

X = sympy.symbols("x y z")
_x, _y, _z = X
_r = _x**2 + _y**2 + _z**2
# Homogeneous harmonic polynomials: on the unit sphere eigenfunctions of Laplace-Beltrami to -l (l + 1).
HARMONICS = {
    1: _x + 0.3 * _y - 2 * _z,
    2: _x * _y + 2 * _z**2 - _x**2 - _y**2,
    3: _x * _y * _z + _z * (5 * _z**2 - 3 * _r) / 3,
    4: _x * _y * (_x**2 - _y**2) + (35 * _z**4 - 30 * _z**2 * _r + 3 * _r**2) / 8,
}


def places(V):
    """The owned nodes' coordinates (nodes, ambient dimension)."""
    X = Function(VectorFunctionSpace(V.mesh(), V.ufl_element())).interpolate(SpatialCoordinate(V.mesh()))
    return X.dat.data_ro.reshape(-1, V.mesh().geometric_dimension).copy()


def harmonic(degree, n):
    """Values (nodes,) of a spherical harmonic at unit vectors n (nodes, 3) and its tangential gradient (nodes, 3)."""
    Y = HARMONICS[degree]
    value = sympy.lambdify(X, Y)(*n.T)
    slopes = [np.broadcast_to(sympy.lambdify(X, sympy.diff(Y, axis))(*n.T), value.shape) for axis in X]
    # Euler: the radial derivative of a homogeneous polynomial is its degree times its value.
    return value, np.stack(slopes, axis=1) - degree * value[:, None] * n


def spaces_on_spheres(refinements, radius=2.0, **settings):
    return [FunctionSpace(mesh, "CG", 1) for mesh in sphere_hierarchy(radius, refinements, **settings)]


def network_on(V, features=2, layers=3, T=0.6, basis=cn.low_order_operators, **settings):
    operators = basis(V)
    learned = settings["dynamics"].parameters if "dynamics" in settings else ()
    return cn.Network(operators, cn.ControlSpace(T, layers, operators, features, parameters=learned), **settings)


def controls_of(network, scale=0.2):
    """Random controls, the same for every mesh and communicator."""
    m = network.control_space.random(np.random.default_rng(1), scale)
    for seed, f in enumerate(m[1:], 2):
        f.dat.data[:] = 0.3 * np.random.default_rng(seed).standard_normal(f.dat.data_ro.shape)
    return m


def smooth(space, shift=0.0):
    """A Function given by its values in ambient space, whatever the numbering of nodes."""
    x = list(SpatialCoordinate(space.mesh()))
    values = [sin((k + 1) * x[0] + shift) + cos(x[1] - 0.3 * k) + x[-1] for k in range(space.value_size)]
    return Function(space).interpolate(as_vector(values) if space.value_shape else values[0])
