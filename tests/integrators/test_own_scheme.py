"""A scheme that is no formula and has sweeps of its own: one file, and every problem and optimiser takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from support.derivatives import check_derivatives
from support.networks import small_network, small_problem

import ctrlnet as cn
from ctrlnet.integrators.base import control_times
from ctrlnet.network.plain import layer_controls, propagate_plain
from ctrlnet.objective.point import Point


@dataclass
class States:
    """All states of a chunk, (layers + 1, nodes, C, images)."""

    Y: np.ndarray

    initial = property(lambda self: self.Y[0])
    final = property(lambda self: self.Y[-1])
    images = property(lambda self: self.Y.shape[-1])
    nbytes = property(lambda self: self.Y.nbytes)

    def complete(self, k):
        return [self.Y[k]]


class DenseSweep:
    r""":math:`Y_{k+1} = Y_k + h\tanh(K_k Y_k + b_k)` with dense matrices: slow, and independent of all kernels."""

    image_block, most_blocks, dtype, chunkwise, imagewise = 4, 2, np.dtype(float), None, None

    def __init__(self, operators, features):
        self.D = np.array([m[:, :] for m in operators.matrices])
        self.features = features

    def field(self, images):
        return np.zeros((self.D.shape[1], self.features, images))

    def trajectory(self, layers, images, keep=True):
        return States(np.zeros((layers + 1, *self.field(images).shape)))

    def trajectory_bytes(self, layers, images):
        return (layers + 1) * self.field(images).nbytes

    def K(self, S, Y):
        return np.einsum("joc,jnm,mci->noi", S, self.D, Y, optimize=True)

    def K_transposed(self, S, mu):
        return np.einsum("joc,jnm,noi->mci", S, self.D, mu, optimize=True)

    def gradient(self, mu, Y):
        return np.einsum("noi,jnm,mci->joc", mu, self.D, Y, optimize=True), mu.sum(axis=(0, 2))

    def _step(self, controls, k, Y):
        return np.tanh(self.K(controls.coefficients[k], Y) + controls.biases[k][:, None])

    def forward(self, controls, h, trajectory):
        Y = trajectory.Y
        for k in range(len(h)):
            Y[k + 1] = Y[k] + h[k] * self._step(controls, k, Y[k])
        return Y[len(h)]

    def adjoint(self, controls, h, trajectory, lam):
        out = controls.zeros()
        for k in reversed(range(len(h))):
            a = self._step(controls, k, trajectory.Y[k])
            mu = h[k] * (1 - a**2) * lam
            out.coefficients[k], out.biases[k] = self.gradient(mu, trajectory.Y[k])
            lam += self.K_transposed(controls.coefficients[k], mu)
        return out

    def adjoint_step(self, controls, h, pair, adjoints):
        (lam,) = adjoints
        return self.adjoint(controls, h, pair, lam)

    def tangent(self, controls, direction, h, trajectory, tangent):
        dY = tangent.Y
        for k in range(len(h)):
            Y, a = trajectory.Y[k], self._step(controls, k, trajectory.Y[k])
            dY[k + 1] = dY[k] + h[k] * (1 - a**2) * self._change(controls, direction, k, Y, dY[k])
        return dY[len(h)]

    def _change(self, controls, direction, k, Y, dY):
        return (self.K(controls.coefficients[k], dY) + self.K(direction.coefficients[k], Y)
                + direction.biases[k][:, None])

    def second_order(self, controls, direction, h, trajectory, tangent, lam, dlam):
        out = controls.zeros()
        for k in reversed(range(len(h))):
            Y, dY, a = trajectory.Y[k], tangent.Y[k], self._step(controls, k, trajectory.Y[k])
            slope, dZ = 1 - a**2, self._change(controls, direction, k, Y, dY)
            mu = h[k] * slope * lam
            dmu = h[k] * (slope * dlam - 2 * a * slope * dZ * lam)
            first, second = self.gradient(dmu, Y), self.gradient(mu, dY)
            out.coefficients[k], out.biases[k] = first[0] + second[0], first[1]
            S, dS = controls.coefficients[k], direction.coefficients[k]
            dlam += self.K_transposed(S, dmu) + self.K_transposed(dS, mu)
            lam += self.K_transposed(S, mu)
        return out


@dataclass(frozen=True)
class Dense:
    """Forward Euler as an integrator that a user writes."""

    order = 1
    nodes = (0.0,)
    explicit = True

    def control_times(self, times):
        return control_times(self.nodes, times)

    def engine(self, dynamics, operators, features, precision):
        @dataclass
        class Engine:
            sweep: DenseSweep

        return Engine(DenseSweep(operators, features))


def test_its_derivatives_are_right(make_case, annotation, assert_taylor):
    check_derivatives(make_case("quadrilateral", integrator=Dense()), annotation, assert_taylor)


def test_the_plain_route_says_that_its_step_is_no_formula(make_case):
    case = make_case("triangle", layers=1, integrator=Dense())
    with pytest.raises(ValueError, match="step of Dense is no formula"):
        propagate_plain(case.network, *layer_controls(case.network, case.m), case.Y0)


@pytest.mark.parametrize("limit", [2**30, 0])
def test_a_training_problem_has_the_numbers_of_the_built_in_scheme(limit):
    found = []
    for integrator in (Dense(), cn.ForwardEuler()):
        problem = small_problem(network=small_network(integrator=integrator), memory_limit=limit)
        layers, W, beta = problem.point(problem.controls(np.random.default_rng(0), 0.3))
        W = np.random.default_rng(1).standard_normal(W.shape)
        at = problem.average.at(layers)
        derivatives = at.gradient(W, beta), at.hessian(W, beta, Point(layers, W, beta))
        found.append([np.array(at.value(W, beta)), *(a for d in derivatives for a in d.arrays)])
    for mine, built_in in zip(*found, strict=True):
        np.testing.assert_allclose(mine, built_in, rtol=0, atol=1e-12 * max(np.abs(built_in).max(initial=0.0), 1.0))


def test_it_trains():
    problem = small_problem(network=small_network(integrator=Dense()))
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0)), iterations=5)
    first, last = result.history.iterations[0], result.history.last
    assert last.objective < 0.7 * first.objective
