"""Preconditioned conjugate gradients on arrays: PETSc's, on each rank by itself and in lockstep with the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

__all__ = ["conjugate_gradients"]

ArrayMap = Callable[[np.ndarray], np.ndarray]

_NO_LIMIT = 1e300  # of a residual's growth


class _Maps:
    """Maps of arrays of one shape, as the contexts of a PETSc Mat and a PC of type python."""

    def __init__(self, shape: tuple[int, ...], product: ArrayMap, inverse: ArrayMap):
        self._shape, self._product, self._inverse = shape, product, inverse

    def mult(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        y.array.reshape(self._shape)[:] = self._product(x.array_r.reshape(self._shape))

    def apply(self, _: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        y.array.reshape(self._shape)[:] = self._inverse(x.array_r.reshape(self._shape))


def conjugate_gradients(
    product: ArrayMap, inverse: ArrayMap, right: np.ndarray, rtol: float, most: int
) -> tuple[np.ndarray, int]:
    r"""Return an approximate solution of :math:`H x = b` from zero, and the iterations.

    They end where the residual's norm in the preconditioner P, :math:`\sqrt{r^T P r}`, is ``rtol`` times its first
    value: that measures the error nearly in the norm of H, and costs no inner product of its own. Both maps may
    communicate: what they return is to be the same on every rank.

    A loop of one's own in NumPy takes 0.94 to 0.98 of the time on problems of the size of ``make demo`` and 0.9 on the
    smallest, whose solves take 0.3 ms (``python tests/benchmarks/bench_libraries.py --parts cg``).

    Parameters
    ----------
    product, inverse
        x -> H x and r -> P r, arrays of the shape of b; symmetric and positive definite.
    right
        b.
    most
        Iterations. So many are reported as well where the solve fails; its solution then is NaN if the maps' values
        are not finite.
    """
    maps = _Maps(right.shape, product, inverse)
    # Each solve has its own: held by Python, they would hold the maps, and these the features, for ever.
    H = PETSc.Mat().createPython([right.size, right.size], context=maps, comm=PETSc.COMM_SELF)
    ksp = PETSc.KSP().create(PETSc.COMM_SELF)
    ksp.setOperators(H)
    ksp.setType(PETSc.KSP.Type.CG)
    ksp.setNormType(PETSc.KSP.NormType.NATURAL)
    ksp.setTolerances(rtol=rtol, atol=0.0, divtol=_NO_LIMIT, max_it=most)
    pc = ksp.getPC()
    pc.setType(PETSc.PC.Type.PYTHON)
    pc.setPythonContext(maps)
    x, b = H.createVecs()
    b.array[:] = right.ravel()
    ksp.solve(b, x)
    out, reason = x.array_r.reshape(right.shape).copy(), ksp.getConvergedReason()
    if reason > 0:
        return out, ksp.getIterationNumber()
    return np.full_like(out, np.nan) if reason == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF else out, most
