r"""Solves with one sparse matrix for many columns by conjugate gradients and multigrid.

For meshes on which the factors of :class:`~ctrlnet.kernels.solves.substitution.DirectSolve` would be too large:
memory and work grow with the nodes alone, and both are split over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import petsctools
from petsc4py import PETSc

from ctrlnet.errors import StageSolveError
from ctrlnet.kernels.code.precision import DOUBLE
from ctrlnet.kernels.solves.field_map import FieldMap, FieldMapShell, FieldsOf, Shell, shell_matrix
from ctrlnet.kernels.solves.levels import Level, connect
from ctrlnet.kernels.solves.substitution import DirectSolve, gathered

__all__ = ["MultigridSolve"]

_MOST_COLUMNS = 64  # solved for together; enough for SIMD, few enough for the vectors of Krylov and multigrid
_SMOOTHED = 4.0  # a smoother works on the eigenvalues from the largest one divided by this up to it


def _identity_minus(c: float, level: Level) -> PETSc.Mat:
    r"""Return :math:`G = I - c\Delta_h` on one level."""
    G = level.operators.matrices[0].copy()
    G.scale(-c)
    G.shift(1.0)
    return G


class _Diffusion(FieldMapShell):
    r"""The shell of :math:`M_L G = M_L + cA` on one level, symmetric and positive definite."""

    def __init__(self, level: Level, c: float, fields: FieldsOf):
        matrix = _identity_minus(c, level)
        matrix.diagonalScale(L=level.mass)
        super().__init__(FieldMap(matrix), fields, fields)
        self._diagonal = matrix.getDiagonal().array_r[:, None].copy()
        start, _, values = matrix.getValuesCSR()
        sums = np.diff(np.concatenate([[0.0], np.abs(values).cumsum()])[start])
        most = float(np.max(sums / self._diagonal[:, 0], initial=0.0))
        self.largest_eigenvalue = matrix.comm.tompi4py().allreduce(most, op=max)  # of D^-1 M_L G, by Gershgorin

    def getDiagonal(self, _: PETSc.Mat, d: PETSc.Vec) -> None:
        for part in self._rows(d.array):
            part[:] = self._diagonal


class _DirectCoarse:
    r"""The PC of the coarsest mesh: :math:`(M_L G)^{-1} = G^{-1} M_L^{-1}` by factors of G."""

    def __init__(self, level: Level, c: float, fields: FieldsOf):
        self._fields, self._mass = fields, level.mass.array_r[:, None].copy()
        matrix = _identity_minus(c, level)
        self._solve = DirectSolve(
            gathered(matrix), len(self._mass), DOUBLE, matrix.comm.tompi4py())

    def apply(self, _: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
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
        Of the hierarchy, finest first, with :math:`\Delta_h = -M_L^{-1}A` as their operator; one alone: no multigrid.
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

    def __init__(self, levels: Sequence[Level], c: float, parameters: dict, prefix: str):
        self.levels, self._c, self._parameters, self._prefix = levels, c, parameters, prefix
        self.comm = levels[0].operators.matrices[0].comm
        self._mass = levels[0].mass.array_r[:, None].copy()
        self._solvers: dict[int, tuple[PETSc.KSP, PETSc.Vec, PETSc.Vec]] = {}
        self.iterations: list[int] = []

    @property
    def nbytes(self) -> int:
        """Of the finest mesh's matrices, about that of all levels."""
        return int(self.levels[0].operators.matrices[0].getInfo()["memory"])

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
        width = next(w for w in range(_MOST_COLUMNS, 0, -DOUBLE.lanes) if columns % w == 0)
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
        def fields(values: np.ndarray) -> tuple[np.ndarray]:
            return (values.reshape(-1, width),)

        def matrix(context: Shell, rows: Level, columns: Level) -> PETSc.Mat:
            m, n = (level.mass.getLocalSize() * width for level in (rows, columns))
            return shell_matrix(context, m, n, self.comm)

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
                # M_L G is symmetric: the transpose of P restricts.
                transfers = [
                    (matrix(FieldMapShell(level.prolong, fields, fields), level, coarse),
                     matrix(FieldMapShell(level.prolong_transposed, fields, fields), coarse, level))
                    for level, coarse in zip(self.levels, self.levels[1:], strict=False)]
                last = connect(pc, matrices, transfers)[-1]
                pc.setFromOptions()
                last.setFromOptions()
                if last.getPC().getType() == PETSc.PC.Type.PYTHON:
                    last.getPC().setPythonContext(_DirectCoarse(self.levels[-1], self._c, fields))
        b = matrices[0].createVecLeft()
        return ksp, b, b.duplicate()
