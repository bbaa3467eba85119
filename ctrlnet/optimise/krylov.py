"""A preconditioner for the Krylov solves of Newton's methods: the regularisation, and the last solve's vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

__all__ = ["KrylovPreconditioner"]


class KrylovPreconditioner:
    r"""Approximate inverse :math:`P \approx H^{-1}` for PETSc, by L-BFGS from the pairs (p, H p) of the solve before.

    Conjugate gradients hand over their directions and their products with H; the next Hessian is much like this
    one. The start of the recursion is :math:`(R'' + \mu M)^{-1}`, regularisation and metric.

    Parameters
    ----------
    base
        The start, array -> array: :meth:`Coordinates.regularisation_solver`, or None for the metric alone.
    pairs
        The most pairs that are kept; 0 leaves the start alone.

    Source: Morales and Nocedal, "Automatic preconditioning by limited memory quasi-Newton updating", 2000.
    """

    def __init__(self, base: Callable[[np.ndarray], np.ndarray] | None = None, pairs: int = 20):
        if pairs < 0:
            raise ValueError(f"pairs must not be negative, received {pairs!r}.")
        self._base = (lambda x: x) if base is None else base
        self._most = pairs
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._used: list[tuple[np.ndarray, np.ndarray, float]] = []

    def saw(self, direction: np.ndarray, product: np.ndarray) -> None:
        """Keep a direction of the running solve and its product."""
        self._seen.append((direction.copy(), product.copy()))

    def renew(self) -> None:
        """Start a solve with another Hessian: the pairs of the one before are used from now on."""
        pairs = [(p, q, float(p @ q)) for p, q in self._seen[-self._most :]] if self._most else []
        self._used = [(p, q, pq) for p, q, pq in pairs if pq > 1e-10 * np.linalg.norm(p) * np.linalg.norm(q)]
        self._seen = []

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return P x."""
        r, alphas = x.copy(), []
        for p, q, pq in reversed(self._used):
            alphas.append((p @ r) / pq)
            r -= alphas[-1] * q
        out = self._base(r)
        if self._used:
            p, q, pq = self._used[-1]
            out = out * (pq / (q @ self._base(q)))
        for (p, q, pq), alpha in zip(self._used, reversed(alphas), strict=True):
            out += (alpha - (q @ out) / pq) * p
        return out

    def apply(self, _, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply as PETSc's Python preconditioner."""
        y.setArray(self.solve(x.array_r))
