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

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from mpi4py import MPI

from ctrlnet.losses import Loss, image_hessians
from ctrlnet.sample_average import Features

__all__ = ["ClassifierProblem", "ClassifierSolution", "InnerSolveError"]

# Up to this many unknowns the whole Hessian is factorised, up to this many features its averaged block.
_WHOLE = 4000
_DENSE = 2000
# The images of least curvature, with this share of it all together, are left out of the factorised Hessian.
_INACTIVE = 0.01
# A start is shortened to the best of these multiples: a saturated softmax has no curvature to step by.
_SHORTENED = (1.0, 0.5, 0.25, 0.0)
# Krylov iterations of a direction by an earlier point's Hessian; where they do not suffice, it is factorised anew. More
# cost as much, and long runs of conjugate gradients amplify round-off until they depend on the number of ranks.
_PATIENCE = 8
_OUT_OF_RANGE = (
    "The classifier's matrix could not be factorised ({}): the features are out of range. Use smaller controls, more "
    "layers, or a larger weights_size.")


class InnerSolveError(ArithmeticError):
    """The classifier's Newton iteration did not reach its tolerance."""


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


@dataclass
class Preconditioner:
    """An approximate inverse of the Hessian, (features + 1, K) -> the same.

    Parameters
    ----------
    apply
        The inverse.
    patience
        Krylov iterations after which it is made anew; None: twice those of the first direction.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    patience: int | None = None


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
    inverse
        A preconditioner to start with, as :meth:`factorise` returns it; that of a nearby problem serves.
    precision
        Of the arithmetic of Newton directions. In double precision a solution does not depend on the number of ranks
        but for round-off, as long as the Hessian is small enough to be factorised as a whole.
    """

    def __init__(
        self, features: Features, regulariser: sp.csc_matrix, ridge: float, loss: Loss, comm: MPI.Comm,
        inverse: Preconditioner | None = None, precision: np.dtype | type = np.float64,
    ):
        self.features = features
        self.regulariser = regulariser
        self.ridge = ridge
        self.loss = loss
        self.comm = comm
        self.inverse = inverse
        self.precision = np.dtype(precision)

    def _scores(self, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        return W.T @ self.features.values + beta[:, None]

    def _regularise(self, W: np.ndarray) -> np.ndarray:
        return (self.regulariser @ W.reshape(self.regulariser.shape[0], -1)).reshape(W.shape)

    def _loss(self, scores: np.ndarray) -> float:
        return self.comm.allreduce(self.loss.value(scores, self.features.labels, self.features.weights))

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
        g = self.loss.gradient(self._scores(W, beta), self.features.labels, self.features.weights)
        return self._pull(g, W, beta)

    def hessian(self, scores: np.ndarray, direction: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the Hessian at the given scores times a direction (features + 1, K).

        ``values`` are the features, or their single-precision copy: the arithmetic follows its type.
        """
        return self._hessian_at(scores, self.features.values if values is None else values)(direction)

    def _hessian_at(self, scores: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        kind = values.dtype
        of_loss = self.loss.hessian_at(
            scores.astype(kind, copy=False), self.features.labels, self.features.weights.astype(kind))

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

    def certificate(self, W: np.ndarray, beta: np.ndarray) -> float:
        r"""Return the bound :math:`\frac12 g^T R^{-1} g \ge \Phi - \Phi^*`: the Hessian is at least R."""
        g = self.gradient(W, beta)
        rows = g[:-1].reshape(self.regulariser.shape[0], -1)
        inverse = scipy.sparse.linalg.splu(self.regulariser).solve(np.ascontiguousarray(rows))
        return 0.5 * float((rows * inverse).sum()) + 0.5 * float(g[-1] @ g[-1]) / self.ridge

    def _image_hessians(self, scores: np.ndarray) -> np.ndarray:
        return image_hessians(self.loss, scores, self.features.labels, self.features.weights)

    def factorise(self, scores: np.ndarray) -> Preconditioner:
        """Return an approximate inverse of the Hessian at these scores.

        Small problems: the Hessian itself, without the images whose curvature does not count. Middling ones:
        its diagonal blocks averaged over classes. Large ones: regulariser and diagonal.
        """
        count, classes = self.features.values.shape[0] + 1, scores.shape[0]
        if count * classes <= _WHOLE:
            return Preconditioner(self._whole_hessian(scores, count, classes), _PATIENCE)
        curvature = np.einsum("ikk->i", self._image_hessians(scores)) / classes
        return Preconditioner(self._averaged_block(curvature) if count <= _DENSE else self._sparse(curvature))

    def _factorise_or_fail(self, scores: np.ndarray) -> Preconditioner:
        """Factorise, with a breakdown on any rank raised on all of them."""
        try:
            inverse, problem = self.factorise(scores), None
        except (np.linalg.LinAlgError, ValueError) as error:
            inverse, problem = None, str(error)
        worst = next((p for p in self.comm.allgather(problem) if p is not None), None)
        if worst is not None:
            raise InnerSolveError(_OUT_OF_RANGE.format(worst))
        return inverse

    def _add_regulariser(self, block: np.ndarray) -> None:
        copies = (block.shape[0] - 1) // self.regulariser.shape[0]
        block[:-1, :-1] += sp.kron(self.regulariser, sp.identity(copies)).toarray()
        block[-1, -1] += self.ridge

    def _whole_hessian(self, scores: np.ndarray, count: int, classes: int):
        kind, hessians = self.precision, self._image_hessians(scores)
        active = self._active(np.einsum("ikk->i", hessians))
        F = np.vstack([self.features.values[:, active], np.ones(int(active.sum()))]).astype(kind)
        hessians = hessians[active].astype(kind)
        whole = np.empty((classes, count, classes, count), dtype=kind)
        for k in range(classes):
            for j in range(k + 1):
                block = (F * hessians[:, k, j]) @ F.T
                whole[k, :, j, :] = whole[j, :, k, :] = block
        self.comm.Allreduce(MPI.IN_PLACE, whole)
        for k in range(classes):
            self._add_regulariser(whole[k, :, k, :])
        # Symmetric, so that its transpose, in Fortran's order, is overwritten without a copy.
        L = scipy.linalg.cholesky(
            whole.reshape(classes * count, -1).T, lower=True, overwrite_a=True, check_finite=False)
        # L^-T L^-1 stays positive definite in floating point, and products are faster than substitutions.
        (trtri,) = scipy.linalg.get_lapack_funcs(("trtri",), (L,))
        (trmv,) = scipy.linalg.get_blas_funcs(("trmv",), (L,))
        inverted, info = trtri(L, lower=1, overwrite_c=1)
        if info:
            raise np.linalg.LinAlgError(f"its factor has a zero on the diagonal, number {info}")

        def inverse(x: np.ndarray) -> np.ndarray:
            half = trmv(inverted, x.T.astype(kind).ravel(), lower=1, overwrite_x=1)
            return trmv(inverted, half, lower=1, trans=1, overwrite_x=1).reshape(classes, count).T.astype(float)

        return inverse

    def _active(self, size: np.ndarray) -> np.ndarray:
        """Return which of this rank's images hold the curvature that counts, by one threshold for all ranks."""
        everything = np.sort(np.concatenate(self.comm.allgather(size)))
        left_out = np.searchsorted(np.cumsum(everything), _INACTIVE * everything.sum())
        return size >= everything[min(left_out, everything.size - 1)]

    def _averaged_block(self, curvature: np.ndarray):
        F = self.features.values
        count = F.shape[0]
        block = np.empty((count + 1, count + 1))
        weighted = F * curvature
        block[:-1, :-1] = weighted @ F.T
        block[-1, :-1] = block[:-1, -1] = weighted.sum(axis=1)
        block[-1, -1] = curvature.sum()
        self.comm.Allreduce(MPI.IN_PLACE, block)
        self._add_regulariser(block)
        factor = scipy.linalg.cho_factor(block, overwrite_a=True)
        return lambda x: scipy.linalg.cho_solve(factor, x, check_finite=False)

    def _sparse(self, curvature: np.ndarray):
        F = self.features.values
        diagonal = np.append((F * F) @ curvature, curvature.sum())
        self.comm.Allreduce(MPI.IN_PLACE, diagonal)
        diagonal[-1] += self.ridge
        copies = F.shape[0] // self.regulariser.shape[0]
        matrix = sp.kron(self.regulariser, sp.identity(copies)) + sp.diags(diagonal[:-1])
        factor = scipy.sparse.linalg.splu(matrix.tocsc())
        return lambda x: np.vstack([factor.solve(np.ascontiguousarray(x[:-1])), x[-1:] / diagonal[-1]])

    # Newton with preconditioned conjugate gradients.

    def _newton_direction(
        self, scores: np.ndarray, g: np.ndarray, rtol: float, most: int, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """Return -H^{-1} g to a relative residual in the preconditioner's norm, and the Krylov iterations."""
        product = self._hessian_at(scores, self.features.values if values is None else values)
        x = np.zeros_like(g)
        r = -g
        z = self.inverse.apply(r)
        p, rz = z, float((r * z).sum())
        if rz == 0.0:
            return x, 0
        target = rtol**2 * rz
        for iteration in range(1, most + 1):
            Hp = product(p)
            step = rz / float((p * Hp).sum())
            x += step * p
            r = r - step * Hp
            z = self.inverse.apply(r)
            rz, previous = float((r * z).sum()), rz
            if rz <= target:
                return x, iteration
            p = z + rz / previous * p
        return x, most

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
        if self.inverse.patience is None:
            self.inverse.patience = max(_PATIENCE, 2 * count)
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

    @np.errstate(over="ignore", invalid="ignore")  # refused below
    def with_scores(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the (W, beta) of nearly the given scores c, (K, images of this rank): a start for :meth:`solve`.

        Where the features changed a little, the scores of the best classifier change less than it does itself.
        Minimises :math:`\sum_i w_i |W^T F_i + \beta - c_i|^2 + \langle W, R W\rangle + \epsilon |\beta|^2`.

        Raises
        ------
        InnerSolveError
            If the features are out of range.
        """
        F = np.vstack([self.features.values, np.ones(scores.shape[1])])
        weighted = F * self.features.weights
        block, right = weighted @ F.T, weighted @ scores.T
        self.comm.Allreduce(MPI.IN_PLACE, block)
        self.comm.Allreduce(MPI.IN_PLACE, right)
        self._add_regulariser(block)
        try:
            found = scipy.linalg.solve(block, right, assume_a="pos", overwrite_a=True)
        except (np.linalg.LinAlgError, ValueError) as error:  # the same on every rank
            raise InnerSolveError(_OUT_OF_RANGE.format(error)) from error
        return found[:-1], found[-1]

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
                self.loss.gradient(scores, self.features.labels, self.features.weights), W, beta)
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
            while True:
                loss = self._loss(scores + step * change)
                penalty = self._penalty(W + step * dW, beta + step * dbeta)
                if loss + penalty <= before + 1e-4 * step * slope + 1e-14 * abs(before) or step < 1e-8:
                    break
                step /= 2
            W += step * dW
            beta += step * dbeta
            scores += step * change
            if decrement <= tolerance * (1 + before):
                return ClassifierSolution(W, beta, scores, loss + penalty, loss, decrement, newton, krylov)
        raise InnerSolveError(
            f"The classifier's Newton iteration stopped after {most_newton} steps with half the squared decrement "
            f"{decrement:.2e} (before: {last:.2e}), tolerance {tolerance * (1 + before):.2e}. Raise the regularisation "
            "of W (weights_gradient, weights_size) or the number of steps."
        )
