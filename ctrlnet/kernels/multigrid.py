r"""Solves with one sparse matrix for many columns by conjugate gradients and multigrid.

For meshes on which the factors of :class:`~ctrlnet.kernels.substitution.DirectSolve` would be too large: memory and
work grow with the nodes alone, and both are split over ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import petsctools
from petsc4py import PETSc

from ctrlnet.failures import StageSolveError
from ctrlnet.kernels.field_map import FieldMap, FieldMapShell
from ctrlnet.kernels.substitution import DirectSolve, gathered

__all__ = ["DiffusionLevel", "MultigridSolve"]

_MOST_COLUMNS = 64  # solved for together; enough for SIMD, few enough for the vectors of Krylov and multigrid
_SMOOTHED = 4.0  # a smoother works on the eigenvalues from the largest one divided by this up to it
_LANES = 8  # doubles of a SIMD vector, which the coarsest mesh's direct solve takes


@dataclass(frozen=True)
class DiffusionLevel:
    r"""One mesh of a hierarchy.

    Attributes
    ----------
    laplacian
        :math:`\Delta_h = -M_L^{-1}A`.
    mass
        Diagonal of :math:`M_L`.
    transfers
        By direction (up: to this mesh): P from the next coarser mesh and :math:`P^T`; None on the coarsest.
    """

    laplacian: PETSc.Mat
    mass: PETSc.Vec
    transfers: dict[bool, FieldMap] | None = None

    @classmethod
    def above(cls, laplacian: PETSc.Mat, mass: PETSc.Vec, prolongation: PETSc.Mat) -> DiffusionLevel:
        """Return a level that has a coarser one."""
        transposed = PETSc.Mat()
        prolongation.transpose(transposed)
        return cls(laplacian, mass, {True: FieldMap(prolongation), False: FieldMap(transposed)})

    def identity_minus(self, c: float) -> PETSc.Mat:
        r"""Return :math:`G = I - c\Delta_h`."""
        G = self.laplacian.copy()
        G.scale(-c)
        G.shift(1.0)
        return G


class _Diffusion(FieldMapShell):
    r"""The shell of :math:`M_L G = M_L + cA` on one level, symmetric and positive definite."""

    def __init__(self, level: DiffusionLevel, c: float, fields):
        matrix = level.identity_minus(c)
        matrix.diagonalScale(L=level.mass)
        super().__init__(FieldMap(matrix), fields, fields)
        self._diagonal = matrix.getDiagonal().array_r[:, None].copy()
        start, _, values = matrix.getValuesCSR()
        sums = np.diff(np.concatenate([[0.0], np.abs(values).cumsum()])[start])
        most = float(np.max(sums / self._diagonal[:, 0], initial=0.0))
        self.largest_eigenvalue = matrix.comm.tompi4py().allreduce(most, op=max)  # of D^-1 M_L G, by Gershgorin

    def getDiagonal(self, _, d):
        for part in self._rows(d.array):
            part[:] = self._diagonal


class _DirectCoarse:
    r"""The PC of the coarsest mesh: :math:`(M_L G)^{-1} = G^{-1} M_L^{-1}` by factors of G."""

    def __init__(self, level: DiffusionLevel, c: float, fields):
        self._fields, self._mass = fields, level.mass.array_r[:, None].copy()
        matrix = level.identity_minus(c)
        self._solve = DirectSolve(
            gathered(matrix), len(self._mass), np.float64, _LANES, matrix.comm.tompi4py())

    def apply(self, _, x, y):
        (right,), (out,) = self._fields(x.array_r), self._fields(y.array)
        np.divide(right, self._mass, out=out)
        self._solve(out)


class MultigridSolve:
    r"""The maps :math:`G^{-1}` and :math:`G^{-T}`, :math:`G = I - c\Delta_h`, on fields (owned nodes, ...) of a chunk.

    :math:`M_L G` is symmetric positive definite, so :math:`G^{-1} = (M_L G)^{-1} M_L` and
    :math:`G^{-T} = M_L (M_L G)^{-1}` by conjugate gradients, preconditioned by one V-cycle (PCMG) with Chebyshev
    smoothing. The columns of a block are one vector for PETSc: one iteration serves them all. Arithmetic is in double
    precision whatever the fields'.

    Parameters
    ----------
    levels
        Of the hierarchy, finest first; one alone: no multigrid.
    c
        Not negative.
    parameters
        PETSc options of the KSP.
    prefix
        Of the options a user gives on the command line.

    Attributes
    ----------
    iterations : list of int
        Of every KSP solve so far.
    """

    def __init__(self, levels: list[DiffusionLevel], c: float, parameters: dict, prefix: str):
        self.levels, self._c, self._parameters, self._prefix = levels, c, parameters, prefix
        self.comm = levels[0].laplacian.comm
        self._mass = levels[0].mass.array_r[:, None].copy()
        self._solvers: dict[int, tuple[PETSc.KSP, PETSc.Vec, PETSc.Vec]] = {}
        self.iterations: list[int] = []

    def __call__(self, field: np.ndarray, transposed: bool = False) -> np.ndarray:
        """Overwrite a contiguous field (owned nodes, C, images) by the solution and return it. Collective.

        Its columns are a multiple of 8.

        Raises
        ------
        StageSolveError
            If the KSP does not converge.
        """
        columns = math.prod(field.shape[1:])
        flat = field.reshape(len(self._mass), columns)
        width = next(w for w in range(_MOST_COLUMNS, 0, -_LANES) if columns % w == 0)
        for begin in range(0, columns, width):
            self._solve(flat[:, begin : begin + width], transposed)
        return field

    def _solve(self, block: np.ndarray, transposed: bool) -> None:
        if block.shape[1] not in self._solvers:
            self._solvers[block.shape[1]] = self._solver(block.shape[1])
        ksp, b, x = self._solvers[block.shape[1]]
        b.array.reshape(block.shape)[:] = block if transposed else self._mass * block
        with petsctools.inserted_options(ksp):
            ksp.solve(b, x)
        self.iterations.append(ksp.getIterationNumber())
        if ksp.getConvergedReason() < 0:
            raise StageSolveError(
                f"The solve of an IMEX step's diffusion stopped after {ksp.getIterationNumber()} iterations (KSP "
                f"reason {ksp.getConvergedReason()}, residual {ksp.getResidualNorm():.3g}). Try "
                f"-{self._prefix}ksp_max_it, -{self._prefix}ksp_monitor, or IMEX(solver='direct')."
            )
        solution = x.array_r.reshape(block.shape)
        block[:] = self._mass * solution if transposed else solution

    def _solver(self, width: int) -> tuple[PETSc.KSP, PETSc.Vec, PETSc.Vec]:
        def fields(values):
            return (values.reshape(-1, width),)

        def matrix(context, rows: DiffusionLevel, columns: DiffusionLevel) -> PETSc.Mat:
            sizes = [(level.mass.getLocalSize() * width, None) for level in (rows, columns)]
            result = PETSc.Mat().createPython(sizes, context=context, comm=self.comm)
            result.setUp()
            return result

        shells = [_Diffusion(level, self._c, fields) for level in self.levels]
        matrices = [matrix(shell, level, level) for shell, level in zip(shells, self.levels, strict=True)]
        ksp = PETSc.KSP().create(self.comm)
        ksp.setOperators(matrices[0])
        finest = len(self.levels) - 1  # PETSc's level 0 is the coarsest
        smoothing = {
            f"mg_levels_{finest - i}_ksp_chebyshev_eigenvalues": f"{e / _SMOOTHED},{e}"
            for i, e in enumerate(shell.largest_eigenvalue for shell in shells[:-1])}
        petsctools.set_from_options(ksp, parameters=smoothing | self._parameters, options_prefix=self._prefix)
        pc = ksp.getPC()
        with petsctools.inserted_options(ksp):
            if pc.getType() == PETSc.PC.Type.MG:
                pc.setMGLevels(len(self.levels))
                for i, (level, coarse) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
                    up, down = (FieldMapShell(level.transfers[d], fields, fields) for d in (True, False))
                    pc.getMGSmoother(finest - i).setOperators(matrices[i])
                    pc.setMGInterpolation(finest - i, matrix(up, level, coarse))
                    pc.setMGRestriction(finest - i, matrix(down, coarse, level))
                last = pc.getMGCoarseSolve()
                last.setOperators(matrices[-1])
                pc.setFromOptions()
                last.setFromOptions()
                if last.getPC().getType() == PETSc.PC.Type.PYTHON:
                    last.getPC().setPythonContext(_DirectCoarse(self.levels[-1], self._c, fields))
        b = matrices[0].createVecLeft()
        return ksp, b, b.duplicate()
