r"""The convex problem of the classifier alone: minimise over W, beta for given features.

.. math::

    \Phi(W, \beta) = \sum_i w_i\, \ell(W^T F_i + \beta, y_i)
        + \tfrac12 \langle W, R W\rangle + \tfrac{\epsilon}{2} |\beta|^2

Newton with conjugate gradients, on all ranks in lockstep: each rank holds the features of its images and
the whole of (W, beta).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from mpi4py import MPI

from ctrlnet.errors import InnerSolveError
from ctrlnet.objective.columns import Features
from ctrlnet.objective.losses import Loss
from ctrlnet.optimise.classifier.conjugate_gradients import conjugate_gradients
from ctrlnet.optimise.classifier.preconditioner import Preconditioner, factorise

__all__ = ["ClassifierProblem", "ClassifierSolution"]

# A start is shortened to the best of these multiples: a saturated softmax has no curvature to step by.
_SHORTENED = (1.0, 0.5, 0.25, 0.0)
# Half the squared Newton decrement, relative to the value, below which a step is full.
_NEAR = 1e-9
# Below this it may have no digits of its own, which shows where it falls no more.
_ROUND_OFF = 1e-15
# Ridge of the map between two problems' features, of their mean square.
_MAP_RIDGE = 1e-3
_OUT_OF_RANGE = (
    "The classifier's matrix could not be factorised ({}): the features are out of range. Use smaller controls, more "
    "layers, or a larger weights_size.")


@dataclass(frozen=True)
class ClassifierSolution:
    r"""A minimiser with its certificate.

    ``decrement`` is half the squared Newton decrement at the last step, :math:`\frac12 g^T H^{-1} g`, the
    quadratic model's estimate of :math:`\Phi - \Phi^*` before that step. ``scores`` (K, images) are those of this
    rank's images.
    """

    W: np.ndarray
    beta: np.ndarray
    scores: np.ndarray
    value: float
    loss: float
    decrement: float
    newton_iterations: int
    krylov_iterations: int


class ClassifierProblem:
    r"""Phi, its derivatives and its minimiser for one set of features.

    Parameters
    ----------
    features
        This rank's images.
    regulariser
        R on the readout nodes (symmetric, positive definite), applied to every feature and class alike.
    ridge
        epsilon of beta.
    loss
        Loss of one image, convex in its scores.
    comm
        The ranks that share the images.
    precision
        Of the arithmetic of Newton directions; the gradient is double.

    Attributes
    ----------
    inverse : Preconditioner
        Of the conjugate gradients; one of a nearby problem serves to start with.
    """

    def __init__(
        self, features: Features, regulariser: sp.csc_matrix, ridge: float, loss: Loss, comm: MPI.Comm,
        precision: np.dtype | type = np.float64,
    ):
        self.features = features
        self.regulariser = regulariser
        self.ridge = ridge
        self.loss = loss
        self.comm = comm
        self.inverse: Preconditioner | None = None
        self.precision = np.dtype(precision)

    def _scores(self, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        return W.T @ self.features.values + beta[:, None]

    def _regularise(self, W: np.ndarray) -> np.ndarray:
        return (self.regulariser @ W.reshape(self.regulariser.shape[0], -1)).reshape(W.shape)

    def _loss(self, scores: np.ndarray) -> float:
        return self.comm.allreduce(self.loss.value(scores, self.features.targets, self.features.weights))

    def _penalty(self, W: np.ndarray, beta: np.ndarray) -> float:
        return 0.5 * float((W * self._regularise(W)).sum()) + 0.5 * self.ridge * float(beta @ beta)

    def _pull(self, dscores: np.ndarray, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return F dscores^T + R W stacked over the row of beta: (features + 1, K)."""
        out = np.empty((W.shape[0] + 1, W.shape[1]))
        np.matmul(self.features.values, dscores.T, out=out[:-1])
        out[-1] = dscores.sum(axis=1)
        self.comm.Allreduce(MPI.IN_PLACE, out)
        out[:-1] += self._regularise(W)
        out[-1] += self.ridge * beta
        return out

    def gradient(self, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return the gradient as (features + 1, K), the last row that of beta."""
        g = self.loss.gradient(self._scores(W, beta), self.features.targets, self.features.weights)
        return self._pull(g, W, beta)

    def hessian(self, scores: np.ndarray, direction: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the Hessian at the given scores times a direction (features + 1, K).

        ``values`` are the features, or their single-precision copy: the arithmetic follows its type.
        """
        return self._hessian_at(scores, self.features.values if values is None else values)(direction)

    def _hessian_at(self, scores: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        kind = values.dtype
        of_loss = self.loss.hessian_at(
            scores.astype(kind, copy=False), self.features.targets, self.features.weights.astype(kind))

        def product(direction: np.ndarray) -> np.ndarray:
            dW, dbeta = direction[:-1], direction[-1]
            g = of_loss(dW.T.astype(kind) @ values + dbeta[:, None].astype(kind))
            out = np.empty(direction.shape)
            out[:-1] = values @ g.T
            out[-1] = g.sum(axis=1)
            self.comm.Allreduce(MPI.IN_PLACE, out)
            out[:-1] += self._regularise(dW)
            out[-1] += self.ridge * dbeta
            return out

        return product

    def penalty_matrix(self) -> np.ndarray:
        """Return R with epsilon, over the features and a one: what the regularisation adds to each class's block."""
        copies = self.features.values.shape[0] // self.regulariser.shape[0]
        return scipy.linalg.block_diag(sp.kron(self.regulariser, sp.identity(copies)).toarray(), self.ridge)

    def certificate(self, W: np.ndarray, beta: np.ndarray) -> float:
        r"""Return the bound :math:`\frac12 g^T R^{-1} g \ge \Phi - \Phi^*`: the Hessian is at least R."""
        g = self.gradient(W, beta)
        rows = g[:-1].reshape(self.regulariser.shape[0], -1)
        inverse = scipy.sparse.linalg.splu(self.regulariser).solve(np.ascontiguousarray(rows))
        return 0.5 * float((rows * inverse).sum()) + 0.5 * float(g[-1] @ g[-1]) / self.ridge

    def _factorise_or_fail(self, scores: np.ndarray) -> Preconditioner:
        """Factorise, with a breakdown on any rank raised on all of them."""
        try:
            inverse, problem = factorise(self, scores), None
        except (np.linalg.LinAlgError, ValueError) as error:
            inverse, problem = None, str(error)
        worst = next((p for p in self.comm.allgather(problem) if p is not None), None)
        if worst is not None:
            raise InnerSolveError(_OUT_OF_RANGE.format(worst))
        return inverse

    # Newton with preconditioned conjugate gradients.

    def _newton_direction(
        self, scores: np.ndarray, g: np.ndarray, rtol: float, most: int, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """Return -H^{-1} g to a relative residual in the preconditioner's norm, and the Krylov iterations."""
        product = self._hessian_at(scores, self.features.values if values is None else values)
        return conjugate_gradients(product, self.inverse, -g, rtol, most)

    def _direction(
        self, scores: np.ndarray, g: np.ndarray, rtol: float, most: int, values: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """Return a Newton direction by the factorisation at hand where it serves, else by one of this Hessian."""
        at, spent = scores.astype(values.dtype, copy=False), 0
        if self.inverse is not None:
            direction, spent = self._newton_direction(at, g, rtol, self.inverse.patience, values)
            if spent < self.inverse.patience:
                return direction, spent
        self.inverse = self._factorise_or_fail(scores)
        direction, count = self._newton_direction(at, g, rtol, most, values)
        self.inverse.used(count)
        return direction, spent + count

    def hessian_solver(
        self, W: np.ndarray, beta: np.ndarray, rtol: float = 1e-14
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the Hessian's inverse at (W, beta), (features + 1, K) -> the same, by conjugate gradients.

        The factorisation that preconditions them is made once.
        """
        scores = self._scores(W, beta)
        self.inverse = self._factorise_or_fail(scores)
        return lambda rhs: self._newton_direction(scores, -rhs, rtol, 1000)[0]

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The features with a row of ones times the images' weights, and their second moments over all images."""
        F = np.vstack([self.features.values, np.ones(self.features.values.shape[1])])
        weighted = F * self.features.weights
        block = weighted @ F.T
        self.comm.Allreduce(MPI.IN_PLACE, block)
        return weighted, block

    def _fit(self, rows: np.ndarray, penalty: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
        r"""Return the X of least :math:`\sum_i w_i |X^T f_i - r_i|^2 + \langle X - X_0, P (X - X_0)\rangle`."""
        weighted, block = self._moments
        right = weighted @ rows.T
        self.comm.Allreduce(MPI.IN_PLACE, right)
        if prior is not None:
            right += penalty @ prior
        try:
            return scipy.linalg.solve(block + penalty, right, assume_a="pos", overwrite_a=True)
        except (np.linalg.LinAlgError, ValueError) as error:  # the same on every rank
            raise InnerSolveError(_OUT_OF_RANGE.format(error)) from error

    @np.errstate(over="ignore", invalid="ignore")  # refused by the fit
    def with_scores(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the (W, beta) of nearly the given scores c, (K, images of this rank): a start for :meth:`solve`.

        Where the features changed a little, the scores of the best classifier change less than it does itself.
        Minimises :math:`\sum_i w_i |W^T F_i + \beta - c_i|^2 + \langle W, R W\rangle + \epsilon |\beta|^2`.

        Raises
        ------
        InnerSolveError
            If the features are out of range.
        """
        found = self._fit(scores, self.penalty_matrix())
        return found[:-1], found[-1]

    @np.errstate(over="ignore", invalid="ignore")
    def take_over(self, before: ClassifierProblem) -> None:
        r"""Take over the factorised Hessian of a problem with other features f of the same images.

        For the best linear map :math:`f \approx M f'`, the Hessian :math:`\sum_i f_i f_i^T \otimes H_i` of the problem
        before is about :math:`M H' M^T`, so that :math:`M^T P M` preconditions this one's where P did the other's.

        Raises
        ------
        InnerSolveError
            If the features are out of range.
        """
        self.inverse, values = before.inverse, before.features.values
        if self.inverse is not None and self.inverse.whole:
            size = values.shape[0] + 1
            ridge = _MAP_RIDGE * np.trace(self._moments[1]) / size * np.eye(size)
            rows = np.vstack([values, np.ones(values.shape[1])])
            self.inverse = self.inverse.mapped(self._fit(rows, ridge, np.eye(size)).T)

    def _shortened(self, W: np.ndarray, beta: np.ndarray):
        """Return the best multiple of a start with its scores, loss and penalty."""
        scores, penalty, best = self._scores(W, beta), self._penalty(W, beta), None
        for factor in _SHORTENED:
            loss = self._loss(factor * scores)
            if best is not None and not loss + factor**2 * penalty < best[1] + best[0] ** 2 * penalty:
                break  # convex along the ray
            best = factor, loss
        factor, loss = best
        return factor * W, factor * beta, factor * scores, loss, factor**2 * penalty

    @np.errstate(over="ignore", invalid="ignore")  # checked below, where it ends the solve
    def solve(
        self, W: np.ndarray, beta: np.ndarray, tolerance: float = 1e-10, most_newton: int = 50,
        most_krylov: int = 50,
    ) -> ClassifierSolution:
        """Minimise from (W, beta) until half the squared Newton decrement is at most ``tolerance * (1 + Phi)``.

        Raises
        ------
        InnerSolveError
            If the iteration ends before that; the message holds what was reached.
        """
        W, beta, scores, loss, penalty = self._shortened(W, beta)
        # A direction to a few digits needs no more than single precision; the gradient is double.
        values = self.features.values.astype(self.precision, copy=False)
        krylov, decrement, relative = 0, np.inf, 0.1
        for newton in range(1, most_newton + 1):
            g = self._pull(
                self.loss.gradient(scores, self.features.targets, self.features.weights), W, beta)
            direction, count = self._direction(scores, g, relative, most_krylov, values)
            krylov += count
            slope = float((g * direction).sum())
            decrement, last = -0.5 * slope, decrement
            if not np.isfinite(decrement):
                raise InnerSolveError(
                    f"The classifier's Newton step is not finite: the features reach {np.abs(values).max():.1e}. "
                    "Smaller controls, or more layers, keep the state in range."
                )
            relative = float(np.clip(np.sqrt(decrement / (1 + loss)) * 10, 1e-3, 0.1))
            dW, dbeta = direction[:-1], direction[-1]
            change = self._scores(dW, dbeta)
            step, before = 1.0, loss + penalty
            near = decrement <= _NEAR * (1 + before)
            while True:
                loss = self._loss(scores + step * change)
                penalty = self._penalty(W + step * dW, beta + step * dbeta)
                # Near the minimum the value has not the digits to judge a step, which converges quadratically there.
                if near or loss + penalty <= before + 1e-4 * step * slope or step < 1e-8:
                    break
                step /= 2
            W += step * dW
            beta += step * dbeta
            scores += step * change
            at_round_off = decrement <= _ROUND_OFF * (1 + before) and decrement > last / 4
            if decrement <= tolerance * (1 + before) or at_round_off:
                return ClassifierSolution(W, beta, scores, loss + penalty, loss, decrement, newton, krylov)
        raise InnerSolveError(
            f"The classifier's Newton iteration stopped after {most_newton} steps with half the squared decrement "
            f"{decrement:.2e} (before: {last:.2e}), tolerance {tolerance * (1 + before):.2e}. Raise the regularisation "
            "of W (weights_gradient, weights_size) or the number of steps."
        )
