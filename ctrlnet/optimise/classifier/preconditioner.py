r"""Approximate inverses of the Hessian of the classifier's problem, for its conjugate gradients.

.. math:: H = \sum_i w_i\, f_i f_i^T \otimes \nabla^2\ell_i + R \otimes I

with f the features and a one. Small problems: H itself, without the images whose curvature does not count. Middling
ones: its diagonal blocks averaged over classes. Large ones: regulariser and diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from mpi4py import MPI

from ctrlnet.objective.columns import Features
from ctrlnet.objective.losses import Loss, image_hessians

__all__ = ["Preconditioner", "factorise"]

# Up to this many unknowns the whole Hessian is factorised, up to this many features its averaged block.
_WHOLE = 4000
_DENSE = 2000
# The images of least curvature, with this share of it all together, are left out of the factorised Hessian.
_INACTIVE = 0.01
# Krylov iterations of a direction by an earlier point's Hessian; where they do not suffice, it is factorised anew. More
# cost as much, and long runs of conjugate gradients amplify round-off until they depend on the number of ranks.
_PATIENCE = 8


class Inverse(Protocol):
    """An approximate inverse Hessian (features + 1, K) -> the same, made of some arrays."""

    def __call__(self, x: np.ndarray) -> np.ndarray: ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what it is made of, for its class to make it again."""


class Regularised(Protocol):
    """What of a classifier's problem its Hessian consists of; see :class:`ClassifierProblem`."""

    features: Features
    regulariser: sp.csc_matrix
    ridge: float
    loss: Loss
    comm: MPI.Comm
    precision: np.dtype

    def penalty_matrix(self) -> np.ndarray: ...


@dataclass
class Preconditioner:
    """A map (features + 1, K) -> the same.

    Parameters
    ----------
    inverse
        By the factors.
    whole
        Whether they are those of the Hessian as a whole.
    change
        M, (features + 1, features + 1), where the factors are those of other features f = M f'.
    patience
        Krylov iterations after which it is made anew.
    """

    inverse: Inverse
    whole: bool = False
    change: np.ndarray | None = None
    patience: int = _PATIENCE

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.inverse(x) if self.change is None else self.change.T @ self.inverse(self.change @ x)

    def mapped(self, change: np.ndarray) -> Preconditioner:
        """Return the preconditioner for features f' with f = M f'."""
        # In C order, as a file returns it: products in another one differ in their last digits.
        return replace(self, change=np.ascontiguousarray(change if self.change is None else self.change @ change))

    def state(self) -> dict[str, Any]:
        """Return it as plain data and arrays."""
        change = {} if self.change is None else {"change": self.change}
        return {"kind": type(self.inverse).__name__, "arrays": self.inverse.arrays(), "whole": self.whole,
                "patience": self.patience, **change}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Preconditioner:
        """Return the preconditioner of a :meth:`state`."""
        inverse = _INVERSES[state["kind"]](**state["arrays"])
        return cls(inverse, state["whole"], state.get("change"), state["patience"])

    def used(self, iterations: int) -> None:
        """Note the iterations of the first direction: parts of the Hessian alone are not as good."""
        if not self.whole:
            self.patience = max(_PATIENCE, 2 * iterations)


def factorise(problem: Regularised, scores: np.ndarray) -> Preconditioner:
    """Return a preconditioner for the Hessian at these scores, (K, images of this rank).

    Raises
    ------
    numpy.linalg.LinAlgError, ValueError
        If the matrix is not positive definite, or not finite, in floating point.
    """
    features = problem.features
    count, classes = features.values.shape[0] + 1, scores.shape[0]
    hessians = image_hessians(problem.loss, scores, features.targets, features.weights)
    curvature = np.einsum("ikk->i", hessians)
    if count * classes <= _WHOLE:
        active = _active(problem.comm, curvature)
        return Preconditioner(_whole_hessian(problem, hessians[active], active), whole=True)
    curvature /= classes
    return Preconditioner(_averaged_block(problem, curvature) if count <= _DENSE else _sparse(problem, curvature))


def _active(comm: MPI.Comm, curvature: np.ndarray) -> np.ndarray:
    """Return which of this rank's images hold the curvature that counts, by one threshold for all ranks."""
    everything = np.sort(np.concatenate(comm.allgather(curvature)))
    left_out = np.searchsorted(np.cumsum(everything), _INACTIVE * everything.sum())
    return curvature >= everything[min(left_out, everything.size - 1)]


def _whole_hessian(problem: Regularised, hessians: np.ndarray, active: np.ndarray) -> Inverse:
    kind, classes = problem.precision, hessians.shape[1]
    F = np.vstack([problem.features.values[:, active], np.ones(len(hessians))]).astype(kind)
    hessians, count = hessians.astype(kind), F.shape[0]
    whole = np.empty((classes, count, classes, count), dtype=kind)
    for k in range(classes):
        for j in range(k + 1):
            block = (F * hessians[:, k, j]) @ F.T
            whole[k, :, j, :] = whole[j, :, k, :] = block
    problem.comm.Allreduce(MPI.IN_PLACE, whole)
    penalty = problem.penalty_matrix().astype(kind)
    for k in range(classes):
        whole[k, :, k, :] += penalty
    # Symmetric, so that its transpose, in Fortran's order, is overwritten without a copy.
    L = scipy.linalg.cholesky(whole.reshape(classes * count, -1).T, lower=True, overwrite_a=True, check_finite=False)
    # L^-T L^-1 stays positive definite in floating point, and products are faster than substitutions.
    (trtri,) = scipy.linalg.get_lapack_funcs(("trtri",), (L,))
    inverted, info = trtri(L, lower=1, overwrite_c=1)
    if info:
        raise np.linalg.LinAlgError(f"its factor has a zero on the diagonal, number {info}")

    return _Whole(inverted)


def _averaged_block(problem: Regularised, curvature: np.ndarray) -> Inverse:
    F = np.vstack([problem.features.values, np.ones(curvature.size)])
    block = (F * curvature) @ F.T
    problem.comm.Allreduce(MPI.IN_PLACE, block)
    return _Averaged(scipy.linalg.cho_factor(block + problem.penalty_matrix(), overwrite_a=True)[0])


def _sparse(problem: Regularised, curvature: np.ndarray) -> Inverse:
    F = problem.features.values
    diagonal = np.append((F * F) @ curvature, curvature.sum())
    problem.comm.Allreduce(MPI.IN_PLACE, diagonal)
    diagonal[-1] += problem.ridge
    copies = F.shape[0] // problem.regulariser.shape[0]
    matrix = (sp.kron(problem.regulariser, sp.identity(copies)) + sp.diags(diagonal[:-1])).tocsc()
    return _Sparse(matrix.data, matrix.indices, matrix.indptr, diagonal[-1:])


class _Whole:
    r"""By the inverse :math:`L^{-1}` of the Hessian's factor."""

    def __init__(self, inverted: np.ndarray):
        self._inverted = np.asfortranarray(inverted)
        (self._trmv,) = scipy.linalg.get_blas_funcs(("trmv",), (self._inverted,))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        L, trmv = self._inverted, self._trmv
        half = trmv(L, x.T.astype(L.dtype).ravel(), lower=1, overwrite_x=1)
        return trmv(L, half, lower=1, trans=1, overwrite_x=1).reshape(x.shape[1], x.shape[0]).T.astype(float)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"inverted": self._inverted}


class _Averaged:
    """By the factor of a block that all classes share."""

    def __init__(self, factor: np.ndarray):
        self._factor = np.asfortranarray(factor)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return scipy.linalg.cho_solve((self._factor, False), x, check_finite=False)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"factor": self._factor}


class _Sparse:
    """By a sparse matrix for the features, and a number for the row of ones."""

    def __init__(self, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, last: np.ndarray):
        self._parts = {"data": data, "indices": indices, "indptr": indptr, "last": last}
        self._factor = scipy.sparse.linalg.splu(sp.csc_matrix((data, indices, indptr)))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.vstack([self._factor.solve(np.ascontiguousarray(x[:-1])), x[-1:] / self._parts["last"]])

    def arrays(self) -> dict[str, np.ndarray]:
        return self._parts


_INVERSES: dict[str, Any] = {kind.__name__: kind for kind in (_Whole, _Averaged, _Sparse)}
