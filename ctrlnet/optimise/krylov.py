"""A preconditioner for the Krylov solves of Newton's methods: the regularisation, and the last solve's vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

__all__ = ["KrylovPreconditioner"]

_LEAST_CURVATURE = 1e-10  # of a pair, as the cosine of its two vectors


class KrylovPreconditioner:
    r"""Approximate inverse :math:`P \approx H^{-1}` for PETSc, by L-BFGS from the pairs (p, H p) of the solve before.

    Conjugate gradients hand over their directions and their products with H; the next Hessian is much like this
    one. The start of the recursion is :math:`\gamma(R'' + \mu M)^{-1}`, regularisation and metric, with the factor that
    fits the last pair. The recursion is written out: PETSc's (MATLMVMBFGS) takes 0.4 to 0.8 of its time
    (``python tests/benchmarks/bench_libraries.py --parts lbfgs``), which is nothing beside a product, but does not
    always give the same last digits for the same pairs, and a run that goes on from a file is to be the same run.

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
        self._base: Callable[[np.ndarray], np.ndarray] = np.copy if base is None else base
        self._most = pairs
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
        self._factor = 1.0

    def saw(self, direction: np.ndarray, product: np.ndarray) -> None:
        """Keep a direction of the running solve and its product."""
        self._seen.append((direction.copy(), product.copy()))

    def renew(self) -> None:
        """Start a solve with another Hessian: the pairs of the one before are used from now on."""
        pairs = [(p, q, float(p @ q)) for p, q in self._seen[-self._most :]] if self._most else []
        self._pairs = [
            (p, q, pq) for p, q, pq in pairs if pq > _LEAST_CURVATURE * np.linalg.norm(p) * np.linalg.norm(q)]
        self._seen = []
        if self._pairs:
            _, q, pq = self._pairs[-1]
            self._factor = pq / float(q @ self._base(q))

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return P x."""
        if not self._pairs:
            return self._base(x)
        r, shares = x.copy(), []
        for p, q, pq in reversed(self._pairs):
            shares.append(float(p @ r) / pq)
            r -= shares[-1] * q
        out = self._factor * self._base(r)
        for (p, q, pq), share in zip(self._pairs, reversed(shares), strict=True):
            out += (share - float(q @ out) / pq) * p
        return out

    def apply(self, _: PETSc.PC | None, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply as PETSc's Python preconditioner."""
        y.setArray(self.solve(x.array_r))
