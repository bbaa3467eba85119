r"""Consistency: the propagation converges to a smooth solution, at second order in h and first in dt.

A network has no source in space, but features that stand still are one. With :math:`L = \sum_j s_j D_j`, three
features and an activation with :math:`\sigma(0) = 0`,

.. math::
    \dot Y_1 = \sigma(L Y_1 + p(t) Y_2 + q(t) Y_3), \qquad \dot Y_2 = \dot Y_3 = 0,

is solved by :math:`Y_1 = a(t) \varphi(x)` if :math:`Y_3 = L\varphi`, :math:`q = -a` and
:math:`\sigma(p\, Y_2) = \dot a\, \varphi`. That is a state equation with feedback, exact for

* :math:`\sigma = z^3`: :math:`p = \dot a^{1/3}`, :math:`Y_2 = \varphi^{1/3}`, with any a;
* :math:`\sigma = \tanh`: :math:`p = 1`, :math:`Y_2 = \mathrm{artanh}\, \varphi`, with a = t.
"""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from firedrake import Function, FunctionSpace, PeriodicRectangleMesh, SpatialCoordinate, cos, pi, sin

from ctrlnet import Activation, ControlSpace, Network, Residual, low_order_operators, propagate, stencil_operators, tanh
from ctrlnet.operators import Operators

cube = Activation("cube", lambda z: z * z * z)
T = 0.5
# Coefficients of 1, dx, dy and the second derivatives in L: reaction, wind, diffusion.
REACTION, WIND, DIFFUSION = -0.5, (0.3, -0.2), 0.05


def coefficients(D: Operators) -> np.ndarray:
    values = {"1": REACTION, "dx": WIND[0], "dy": WIND[1], "laplacian": DIFFUSION, "dxx": DIFFUSION, "dyy": DIFFUSION}
    return np.array([values.get(name, 0.0) for name in D.names])


def profile(x, y):
    return 0.45 + 0.2 * sin(2 * pi * x) * cos(2 * pi * y)


def operator_on(u, x, y):
    """L u, by UFL's exact derivatives."""
    def d(f, variable):
        return ufl.diff(f, variable)

    laplace = d(d(u, x), x) + d(d(u, y), y)
    return REACTION * u + WIND[0] * d(u, x) + WIND[1] * d(u, y) + DIFFUSION * laplace


class Manufactured:
    """One network of the family, its start and its exact final state."""

    def __init__(self, quadrilateral: bool, cells: int, steps: int, activation):
        mesh = PeriodicRectangleMesh(cells, cells, 1.0, 1.0, quadrilateral=quadrilateral)
        V = FunctionSpace(mesh, "CG", 1)
        D = stencil_operators(V) if quadrilateral else low_order_operators(V)
        controls = ControlSpace(T, steps, D, 3)
        self.network = Network(D, controls, dynamics=Residual(activation))
        times = T / steps * np.arange(steps)
        if activation is cube:
            a, rate = np.exp, np.exp
        else:
            a, rate = (lambda t: t), np.ones_like
        S = np.zeros((steps, len(D), 3, 3))
        S[:, :, 0, 0] = coefficients(D)
        S[:, 0, 0, 1] = np.cbrt(rate(times)) if activation is cube else 1.0
        S[:, 0, 0, 2] = -a(times)
        self.m = controls.zero()
        # Time meshes number their cells as they like; the sampling matrix knows.
        self.m.s.dat.data[:] = (self.network.sampling.T @ S.reshape(steps, -1)).reshape(self.m.s.dat.data_ro.shape)
        x, y = (ufl.variable(c) for c in SpatialCoordinate(mesh))
        phi = profile(x, y)
        source = phi ** (1 / 3) if activation is cube else 0.5 * ufl.ln((1 + phi) / (1 - phi))
        fields = [Function(V).interpolate(f).dat.data_ro for f in (phi, source, operator_on(phi, x, y))]
        self.exact = a(T) * fields[0]
        self.Y0 = Function(self.network.state_space(1))
        self.Y0.dat.data[:] = np.stack([a(0.0) * fields[0], *fields[1:]], axis=1)

    def final(self):
        return propagate(self.network, self.m, self.Y0).dat.data_ro[:, 0]

    def error(self):
        return np.sqrt(np.mean((self.final() - self.exact) ** 2))


@pytest.mark.parametrize("activation", [cube, tanh], ids=lambda a: a.name)
@pytest.mark.parametrize("quadrilateral", [True, False], ids=["quadrilaterals", "triangles"])
def test_second_order_in_h(quadrilateral, activation):
    """dt ~ h^2 for stability, and so that both errors fall alike; a = t leaves none in dt for tanh."""
    cells = np.array([8, 16, 32])
    errors = [Manufactured(quadrilateral, n, n * n // 2, activation).error() for n in cells]
    orders = np.diff(np.log(errors)) / np.diff(np.log(1 / cells))
    assert errors[0] > 1e-5, "the coarse error must be one of discretisation"
    assert abs(orders[-1] - 2) < 0.1, f"second order in h, measured {orders} from errors {errors}"


@pytest.mark.parametrize("quadrilateral", [True, False], ids=["quadrilaterals", "triangles"])
def test_first_order_in_dt(quadrilateral):
    """On one mesh, differences between steps halved: the error of the mesh cancels."""
    finals = [Manufactured(quadrilateral, 8, steps, cube).final() for steps in (16, 32, 64, 128)]
    changes = [np.sqrt(np.mean((one - other) ** 2)) for one, other in zip(finals, finals[1:], strict=False)]
    orders = np.log2(np.array(changes[:-1]) / changes[1:])
    assert abs(orders[-1] - 1) < 0.1, f"forward Euler is of first order, measured {orders}"


def test_the_start_of_the_static_features_is_kept():
    case = Manufactured(True, 8, 4, tanh)
    final = propagate(case.network, case.m, case.Y0).dat.data_ro
    np.testing.assert_array_equal(final[:, 1:], case.Y0.dat.data_ro[:, 1:])
