"""The meshes of a hierarchy, the maps between them, and their places in PETSc's multigrid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from petsc4py import PETSc

from ctrlnet.kernels.solves.field_map import FieldMap
from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.hierarchy import interpolation_matrix, operators_by_level

__all__ = ["Level", "connect", "levels_of"]


class Level:
    r"""One mesh of a hierarchy, and the maps between its fields and those of the next coarser one, V_h and V_H.

    Each map is made when it is first used; on the coarsest mesh there are none.

    Parameters
    ----------
    operators
        What is rediscretised on every mesh, on this one.
    coarser
        The same on the next coarser mesh; None on the coarsest.
    """

    def __init__(self, operators: Operators, coarser: Operators | None = None):
        self.operators, self._coarser = operators, coarser

    @cached_property
    def mass(self) -> PETSc.Vec:
        """Diagonal of the lumped mass."""
        return _mass(self.operators)

    @cached_property
    def _interpolation(self) -> PETSc.Mat:
        return interpolation_matrix(self._coarser.space, self.operators.space)

    @cached_property
    def _transposed_interpolation(self) -> PETSc.Mat:
        out = PETSc.Mat()
        self._interpolation.transpose(out)
        return out

    @cached_property
    def _inverse_coarse_mass(self) -> PETSc.Vec:
        out = _mass(self._coarser)
        out.reciprocal()
        return out

    @cached_property
    def prolong(self) -> FieldMap:
        """P, interpolation: V_H -> V_h."""
        return FieldMap(self._interpolation)

    @cached_property
    def prolong_transposed(self) -> FieldMap:
        """:math:`P^T`: V_h* -> V_H*."""
        return FieldMap(self._transposed_interpolation)

    @cached_property
    def restrict(self) -> FieldMap:
        r""":math:`M_H^{-1}P^T M_h`: V_h -> V_H, which keeps integrals and maps functions to functions."""
        matrix = self._transposed_interpolation.copy()
        matrix.diagonalScale(L=self._inverse_coarse_mass, R=self.mass)
        return FieldMap(matrix)

    @cached_property
    def restrict_transposed(self) -> FieldMap:
        r""":math:`M_h P M_H^{-1}`: V_H* -> V_h*."""
        matrix = self._interpolation.copy()
        matrix.diagonalScale(L=self.mass, R=self._inverse_coarse_mass)
        return FieldMap(matrix)


def _mass(operators: Operators) -> PETSc.Vec:
    with operators.lumped_mass.dat.vec_ro as mass:
        return mass.copy()


def levels_of(operators: Operators) -> list[Level]:
    """Return the levels of the operators' mesh and all coarser ones of its hierarchy, finest first."""
    sets = operators_by_level(operators)
    return [Level(*pair) for pair in zip(sets, [*sets[1:], None], strict=True)]


def connect(
    pc: PETSc.PC, matrices: Sequence[PETSc.Mat], transfers: Sequence[tuple[PETSc.Mat, PETSc.Mat]]
) -> list[PETSc.KSP]:
    """Give a PC of type mg its levels and return their solvers: smoothers, and last the coarsest mesh's solve.

    Options are the caller's to set, of the PC and of the solvers.

    Parameters
    ----------
    matrices
        Of the operator on each level, finest first.
    transfers
        Interpolation and restriction between each level and the next coarser one.
    """
    finest = len(matrices) - 1  # PETSc's level 0 is the coarsest
    pc.setMGLevels(len(matrices))
    solvers = [pc.getMGSmoother(finest - i) for i in range(len(matrices))]
    for solver, matrix in zip(solvers, matrices, strict=True):
        solver.setOperators(matrix, matrix)
    for i, (interpolation, restriction) in enumerate(transfers):
        pc.setMGInterpolation(finest - i, interpolation)
        pc.setMGRestriction(finest - i, restriction)
    return solvers
