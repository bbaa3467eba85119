r"""Sweeps of the generalised Gauss-Newton matrix :math:`G = J^T H J` of a sample average.

J is the tangent of (S, b, W, beta) -> scores, H the loss's Hessian in the scores. G is positive semidefinite where
the loss is convex, and it is the Hessian where the loss's gradient vanishes.

Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from ctrlnet.sample_average import SampleAverage

__all__ = ["GaussNewton"]


class GaussNewton:
    """Products with G and rows of J of one sample average, at a point (S, b, W, beta) of arrays.

    Every value returned is that of all ranks, the same on each.

    Parameters
    ----------
    average
        Network, sample and loss; its counter counts the sweeps, its trajectories are used where they are kept.
    """

    def __init__(self, average: SampleAverage):
        self.average = average

    def product(self, point, direction):
        """Return G times a direction (S, b, W, beta): a tangent sweep, the loss's Hessian, an adjoint sweep."""
        average = self.average
        S, b, W, beta = point
        average.count("tangent")
        average.count("adjoint")
        out = tuple(np.zeros(x.shape) for x in point)
        for chunk, trajectory in average.trajectories(S, b):
            F, dF, _ = average.perturbed(chunk, trajectory, S, direction)
            mine, labels, weights = chunk.mine, chunk.labels, chunk.weights
            scores, change = average.perturbed_scores(F[:, mine], dF[:, mine], W, beta, direction)
            dg = average.loss.hessian(scores, labels, weights, change)
            self._add(out, chunk, trajectory, S, W, F[:, mine], dg)
        average.split.sum(*out)
        average.check_finite(sum(float(x.sum()) for x in out))
        return out

    def _add(self, out, chunk, trajectory, S, W, F, dg) -> None:
        """Add J^T dg of one chunk."""
        average = self.average
        lam = average.adjoint_state(average.split.whole_chunk(dg), W)
        gS, gb = average.network.sweep.adjoint(S, average.network.step_sizes, trajectory, lam)
        for total, part in zip(out, (gS, gb, F @ dg.T, dg.sum(axis=1)), strict=True):
            total += part

    def projected_product(self, point, dS, db, react):
        r"""Return the Schur complement of G in (S, b) times a direction (dS, db).

        Parameters
        ----------
        react
            The classifier's answer: maps :math:`G_{W\theta} d\theta`, (features + 1, K), to
            :math:`dW = -G_{WW}^{-1} G_{W\theta} d\theta`.
        """
        average = self.average
        S, b, W, beta = point
        zero = (dS, db, np.zeros_like(W), np.zeros_like(beta))
        average.count("tangent")
        average.count("adjoint")
        kept, mixed = [], np.zeros((W.shape[0] + 1, W.shape[1]))
        for chunk, trajectory in average.trajectories(S, b):
            F, dF, _ = average.perturbed(chunk, trajectory, S, zero)
            mine, labels, weights = chunk.mine, chunk.labels, chunk.weights
            scores, change = average.perturbed_scores(F[:, mine], dF[:, mine], W, beta, zero)
            dg = average.loss.hessian(scores, labels, weights, change)
            mixed[:-1] += F[:, mine] @ dg.T
            mixed[-1] += dg.sum(axis=1)
            kept.append((F[:, mine], scores, change))
        average.split.sum(mixed)
        reaction = react(mixed)
        out = tuple(np.zeros(x.shape) for x in point)
        for (chunk, trajectory), (F, scores, change) in zip(average.trajectories(S, b), kept, strict=True):
            labels, weights = chunk.labels, chunk.weights
            change = change + reaction[:-1].T @ F + reaction[-1][:, None]
            self._add(out, chunk, trajectory, S, W, F, average.loss.hessian(scores, labels, weights, change))
        average.split.sum(*out[:2])
        average.check_finite(sum(float(x.sum()) for x in out[:2]))
        return out[:2]

    def whole_features(self, S: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the features (features, n) of the whole sample, on every rank."""
        average = self.average
        parts = [average.chunk_features(chunk, trajectory.states[-1, : trajectory.owned])
                 for chunk, trajectory in average.trajectories(S, b)]
        return average.split.whole_sample(np.concatenate(parts, axis=1))

    def rows(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, dscores: np.ndarray) -> np.ndarray:
        r"""Return :math:`\partial (q_i \cdot c_i)/\partial(S, b)` of every image i by itself.

        Parameters
        ----------
        dscores
            One direction q_i of the scores an image, (K, n), on every rank.

        Returns
        -------
        numpy.ndarray
            (layers, J * C * C + C, n): derivatives with respect to the layers' coefficients and biases.
        """
        average = self.average
        sweep, h = average.network.sweep, average.network.step_sizes
        average.count("adjoint")
        parts = []
        for chunk, trajectory in average.trajectories(S, b):
            lam = average.adjoint_state(dscores[:, chunk.start : chunk.stop], W)
            gS, gb = sweep.adjoint_each(S, h, trajectory, lam)
            part = np.concatenate([gS.reshape(len(h), -1, gS.shape[-1]), gb], axis=1)
            parts.append(part[:, :, : chunk.stop - chunk.start])
        rows = np.concatenate(parts, axis=2)
        if average.network.comm.size > 1:
            average.network.comm.Allreduce(MPI.IN_PLACE, rows)
        return average.split.whole_sample(rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:2], -1)
