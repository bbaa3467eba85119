"""A loss on scores that a user writes: one class, and every problem and optimiser takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from support.networks import small_problem

import ctrlnet as cn
from ctrlnet.objective import Loss


@dataclass(frozen=True)
class OneAgainstAll(Loss):
    r"""The sum of all classes' logistic losses, :math:`\sum_k \log(1 + e^{-y_k c_k})`, y = 1 for the class, else -1."""

    def _signs(self, scores, labels):
        out = -np.ones(scores.shape)
        out[labels, np.arange(labels.size)] = 1.0
        return out

    def value(self, scores, labels, weights):
        return float(weights @ np.logaddexp(0.0, -self._signs(scores, labels) * scores).sum(axis=0))

    def gradient(self, scores, labels, weights):
        y = self._signs(scores, labels)
        return -weights * y / (1 + np.exp(y * scores))

    def hessian_at(self, scores, labels, weights):
        p = 1 / (1 + np.exp(-scores))
        return lambda direction: weights * p * (1 - p) * direction

    def hessian(self, scores, labels, weights, direction):
        return self.hessian_at(scores, labels, weights)(direction)

    def agrees(self, scores, labels):
        return scores.argmax(axis=0) == labels


def test_its_derivatives_are_right(assert_taylor):
    problem = small_problem(loss=OneAgainstAll())
    point = problem.controls(np.random.default_rng(0), 0.3)
    direction = [f._ad_copy() for f in point]
    for f in direction:
        f.dat.data[:] = 0.1 * np.random.default_rng(2).standard_normal(f.dat.data_ro.shape)
    assert_taylor(problem.reduced_functional(point), point, direction)


def test_it_trains():
    problem = small_problem(loss=OneAgainstAll(), count=90)
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0)), iterations=10)
    assert result.history.last.objective < 0.7 * result.history.iterations[0].objective
    assert problem.average.accuracy(*problem.point(result.controls)) > 0.8
