"""A preconditioner for the Krylov solves of Newton's methods: the regularisation, and the last solve's vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import petsctools
from petsc4py import PETSc

from ctrlnet.optimise.rounding import same_digits

__all__ = ["KrylovPreconditioner"]

_LEAST_CURVATURE = 1e-10  # of a pair, as the cosine of its two vectors


class _Start:
    r"""The start of the recursion, :math:`\gamma P_0`, as the context of a PETSc Mat of type python: its solves."""

    def __init__(self, base: Callable[[np.ndarray], np.ndarray]):
        self.base, self.factor = base, 1.0

    def solve(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        y.setArray(self.factor * self.base(x.array_r))


class KrylovPreconditioner:
    r"""Approximate inverse :math:`P \approx H^{-1}` for PETSc, by L-BFGS from the pairs (p, H p) of the solve before.

    Conjugate gradients hand over their directions and their products with H; the next Hessian is much like this
    one. The start of the recursion is :math:`\gamma(R'' + \mu M)^{-1}`, regularisation and metric, with the factor that
    fits the last pair. The recursion is PETSc's (MATLMVMBFGS): one in NumPy takes 1.3 to 2.6 times as long
    (``python tests/benchmarks/bench_libraries.py --parts lbfgs``).

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
        self._start = _Start(np.copy if base is None else base)
        self._most = pairs
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._recursion: PETSc.Mat | None = None

    def saw(self, direction: np.ndarray, product: np.ndarray) -> None:
        """Keep a direction of the running solve and its product."""
        self._seen.append((direction.copy(), product.copy()))

    def renew(self) -> None:
        """Start a solve with another Hessian: the pairs of the one before are used from now on."""
        pairs = [(p, q, float(p @ q)) for p, q in self._seen[-self._most :]] if self._most else []
        used = [(p, q, pq) for p, q, pq in pairs if pq > _LEAST_CURVATURE * np.linalg.norm(p) * np.linalg.norm(q)]
        with same_digits():
            self._seen, self._recursion = [], self._recursion_of(used) if used else None

    def _recursion_of(self, pairs: list[tuple[np.ndarray, np.ndarray, float]]) -> PETSc.Mat:
        p, q, pq = pairs[-1]
        self._start.factor = pq / float(q @ self._start.base(q))
        sizes = [p.size, p.size]
        start = PETSc.Mat().createPython(sizes, context=self._start, comm=PETSc.COMM_SELF)
        start.setUp()
        out = PETSc.Mat().create(PETSc.COMM_SELF)
        out.setType(PETSc.Mat.Type.LMVMBFGS)
        out.setSizes(sizes)
        petsctools.set_from_options(
            out, parameters={"mat_lmvm_hist_size": len(pairs), "mat_lmvm_scale_type": "none", "mat_lmvm_eps": 0.0})
        out.setUp()
        out.setLMVMJ0(start)
        # It takes differences of points and of gradients: sums of the pairs, which it does not change with their
        # lengths. With p . q = 1 for all of them the sums keep their digits.
        x, f = start.createVecs()
        out.updateLMVM(x, f)
        for p, q, pq in pairs:
            x.array[:] += p / np.sqrt(pq)
            f.array[:] += q / np.sqrt(pq)
            out.updateLMVM(x, f)
        return out

    def solve(self, x: np.ndarray) -> np.ndarray:
        """Return P x."""
        with same_digits():
            right = PETSc.Vec().createWithArray(x.copy(), comm=PETSc.COMM_SELF)
            out = right.duplicate()
            self.apply(None, right, out)
        return out.array_r.copy()

    def apply(self, _: PETSc.PC | None, x: PETSc.Vec, y: PETSc.Vec) -> None:
        """Apply as PETSc's Python preconditioner."""
        if self._recursion is None:
            y.setArray(self._start.base(x.array_r))
        else:
            self._recursion.solve(x, y)
