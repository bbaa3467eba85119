r"""The smoother of multigrid: a few steps of GMRES in one pass over the fields."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from ctrlnet.kernels.solves.vectors import parts_of
from ctrlnet.kernels.traced.run import Run

__all__ = ["LinearOperator", "MinimalResidual"]


class LinearOperator(Protocol):
    """A v as sums, one a part of the state: what :class:`MinimalResidual` smooths with."""

    run: Run

    def terms(self, v: list[np.ndarray]) -> list[list[tuple[float, np.ndarray]]]:
        """Return, for each part, factors and fields whose sum is that part of A v."""


class MinimalResidual:
    r"""A PETSc KSP of type python: :math:`x + \sum_{i<s} c_i A^i r` with the c of the least residual, r = b - A x.

    The result of s steps of GMRES, s being ``ksp_max_it``. With so few of them the powers :math:`A^i r` serve as the
    basis as they are: all inner products are one product of matrices and one reduction over ranks, and the fields stay
    where the kernels read them.

    Source: Hoemmen, "Communication-avoiding Krylov subspace methods", 2010, in its simplest form.
    """

    def __init__(self, operator: LinearOperator, comm: MPI.Comm):
        self._operator, self._run, self._comm = operator, operator.run, comm
        self._powers: np.ndarray | None = None  # (s + 1, parts, nodes with ghosts, C, images)

    def _basis(self, steps: int) -> np.ndarray:
        run = self._run
        if self._powers is None or len(self._powers) != steps + 1:
            parts, nodes = run.program.parts, run.mesh.nodes
            fields = run.primitives.field((steps + 1) * parts * nodes, run.images)
            self._powers = fields.reshape(steps + 1, parts, nodes, *fields.shape[1:])
        return self._powers

    def solve(self, ksp: PETSc.KSP, b: PETSc.Vec, x: PETSc.Vec) -> None:
        """Improve x, which is zero unless the KSP says otherwise."""
        run, steps = self._run, ksp.getTolerances()[3]
        powers, owned, total = self._basis(steps), run.mesh.owned, run.primitives.weighted_sum
        right, solution = parts_of(run, b.array_r), parts_of(run, x.array)
        if ksp.getInitialGuessNonzero():
            for power, value in zip(powers[1], solution, strict=True):
                power[:owned] = value
            for power, part, terms in zip(powers[0], right, self._operator.terms(list(powers[1])), strict=True):
                total([1.0, *(-c for c, _ in terms)], [part, *(f for _, f in terms)], power[:owned])
            before = [[(1.0, value)] for value in solution]
        else:
            for power, part in zip(powers[0], right, strict=True):
                power[:owned] = part
            before = [[] for _ in solution]
        for v, image in zip(powers, powers[1:], strict=False):
            for power, terms in zip(image, self._operator.terms(list(v)), strict=True):
                total([c for c, _ in terms], [f for _, f in terms], power[:owned])
        c = _least_residual(self._products(powers[:, :, :owned]))
        for k, (value, terms) in enumerate(zip(solution, before, strict=True)):
            terms += list(zip(c, powers[:-1, k], strict=True))
            total([f for f, _ in terms], [f for _, f in terms], value)
        ksp.setConvergedReason(PETSc.KSP.ConvergedReason.CONVERGED_ITS)

    def _products(self, powers: np.ndarray) -> np.ndarray:
        """Return all inner products of the powers, summed over ranks."""
        products = np.zeros((len(powers),) * 2)
        for k in range(powers.shape[1]):
            part = powers[:, k].reshape(len(powers), -1)
            products += part @ part.T
        return self._comm.allreduce(products)


def _least_residual(products: np.ndarray) -> np.ndarray:
    """Return the c that minimise |r - sum c_i A^(i+1) r|, from the inner products of r, A r, A^2 r, ..."""
    norms = np.sqrt(np.diag(products))
    if not np.isfinite(norms).all():
        return np.full(len(norms) - 1, np.nan)  # the outer iteration says so
    scale = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1.0), 0.0)[1:]
    scaled = products[1:, 1:] * np.outer(scale, scale)
    return scale * np.linalg.lstsq(scaled, scale * products[1:, 0], rcond=1e-14)[0]
