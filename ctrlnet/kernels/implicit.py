r"""Implicit stages by Newton's method and multigrid: :math:`U - g(U) = Y` for all images of a chunk at once.

PETSc's SNES and KSP work on one vector, the chunk's fields; operators are applied matrix-free by the kernels. The
preconditioner is geometric multigrid (PCMG) on the mesh hierarchy: on each level the operators are rediscretised,
and g is linearised at the restricted state.
"""

from __future__ import annotations

import numpy as np
import petsctools
import scipy.sparse as sp
from petsc4py import PETSc

from ctrlnet.failures import StageSolveError
from ctrlnet.kernels.halo import Halo
from ctrlnet.kernels.operations import OnMesh, Run

__all__ = ["ImplicitStage", "Level", "Transfer"]


class Transfer:
    """A sparse map between the nodes of two meshes, (rows of this rank) x (all columns), on fields of a chunk."""

    def __init__(self, matrix: PETSc.Mat):
        comm = matrix.comm.tompi4py()
        start, columns, values = matrix.getValuesCSR()
        first, last = matrix.getOwnershipRangeColumn()
        inside = (columns >= first) & (columns < last)
        ghosts = np.unique(columns[~inside])
        self._owned = last - first
        self._halo = Halo(comm, self._owned, ghosts)
        local = np.where(inside, columns - first, self._owned + np.searchsorted(ghosts, columns))
        shape = (start.size - 1, self._owned + ghosts.size)
        self._matrix = sp.csr_array((values, local, start), shape=shape)

    def __call__(self, field: np.ndarray) -> np.ndarray:
        """Return the map of owned rows (nodes, ...) -> (rows, ...)."""
        whole = np.zeros((self._matrix.shape[1], int(np.prod(field.shape[1:]))))
        whole[: self._owned] = field.reshape(self._owned, whole.shape[1])
        self._halo.update(whole)
        return (self._matrix @ whole).reshape(-1, *field.shape[1:])


class Level:
    r"""One mesh of the hierarchy, and the maps to the next coarser one; V_h -> V_H and their transposes.

    ``restrict`` is :math:`M_H^{-1}P^T M_h`, which keeps constants' integrals and maps functions to functions.
    """

    def __init__(self, mesh: OnMesh, mass: np.ndarray, prolongation: PETSc.Mat | None = None, coarse_mass=None):
        self.mesh, self.mass, self.coarse_mass = mesh, mass[:, None, None], coarse_mass
        if prolongation is not None:
            transposed = PETSc.Mat()
            prolongation.transpose(transposed)
            self._up, self._down = Transfer(prolongation), Transfer(transposed)
            self.coarse_mass = coarse_mass[:, None, None]

    def prolong(self, field: np.ndarray, transposed: bool) -> np.ndarray:
        return self.mass * self._up(field / self.coarse_mass) if transposed else self._up(field)

    def restrict(self, field: np.ndarray, transposed: bool) -> np.ndarray:
        return self._down(field) if transposed else self._down(self.mass * field) / self.coarse_mass


class _Operator:
    """The shell of A = I - g'(U), or of its transpose, on one level."""

    def __init__(self, run: Run, transposed: bool):
        self.run, self.transposed = run, transposed
        self._changes = [None] * len(run.program.operations)

    def mult(self, _, x, y):
        v = fields_of(self.run, x, "krylov")
        if self.transposed:
            result = self.run.adjoint(v, what="krylov adjoint")
        else:
            result = self.run.tangent(v, None, None, "krylov change", self._changes)
        write(self.run, y, v, result)


class _Between:
    """The shell of a prolongation (mult of rank fine x coarse) or a restriction."""

    def __init__(self, level: Level, fine: Run, coarse: Run, transposed: bool, up: bool):
        self.level, self.transposed, self.up = level, transposed, up
        self.source = coarse if up else fine

    def mult(self, _, x, y):
        run = self.source
        parts = x.array_r.reshape(run.program.parts, run.mesh.owned, run.primitives.features, run.images)
        carry = self.level.prolong if self.up else self.level.restrict
        y.array = np.concatenate([carry(p, self.transposed).ravel() for p in parts])

    def multAdd(self, mat, x, y, z):
        result = z.duplicate()
        self.mult(mat, x, result)
        result.axpy(1.0, y)
        result.copy(z)


def fields_of(run: Run, vector: PETSc.Vec, what: str) -> list[np.ndarray]:
    """Return the fields of a vector, with room for ghost rows."""
    owned = run.mesh.owned
    fields = [run.buffer(what, -1, k) for k in range(run.program.parts)]
    values = vector.array_r.reshape(len(fields), owned, *fields[0].shape[1:])
    for f, value in zip(fields, values, strict=True):
        f[:owned] = value
    return fields


def write(run: Run, vector: PETSc.Vec, fields: list, minus: list) -> None:
    """vector = fields - minus; None is zero."""
    owned = run.mesh.owned
    out = vector.array.reshape(len(fields), owned, run.primitives.features, run.images)
    for k, (f, m) in enumerate(zip(fields, minus, strict=True)):
        out[k] = 0 if f is None else f[:owned]
        if m is not None:
            out[k] -= m[:owned]


class ImplicitStage:
    """Solves with one stage of a chunk: nonlinear, linear and transposed.

    Parameters
    ----------
    run
        The stage's g on the network's mesh.
    levels
        Of the hierarchy, finest first; one alone: no multigrid.
    parameters, linear_parameters
        PETSc options of SNES with its KSP, and of the KSP of derivatives.
    prefix
        Of the options a user gives on the command line.
    """

    def __init__(self, run: Run, levels: list[Level], parameters: dict, linear_parameters: dict, prefix: str):
        self.run, self.levels, self.prefix = run, levels, prefix
        self.runs = [run] + [Run(run.program, level.mesh, run.images) for level in levels[1:]]
        self.comm = run.mesh.rows["operators"].table.halo.comm
        self.newton_iterations: list[int] = []
        self.krylov_iterations: list[int] = []
        self._snes = PETSc.SNES().create(self.comm)
        x = self._vector(run)
        self._snes.setFunction(self._residual, x.duplicate())
        J = self._matrix(_Operator(run, False), run, run)
        self._snes.setJacobian(self._linearise, J, J)
        self._x = x
        self._snes.getKSP().setMonitor(self._count)
        petsctools.set_from_options(self._snes, parameters=parameters, options_prefix=prefix)
        self._multigrid(self._snes.getKSP().getPC(), False)
        self._ksp = {}
        for transposed in (False, True):
            ksp = PETSc.KSP().create(self.comm)
            A = J if not transposed else self._matrix(_Operator(run, True), run, run)
            ksp.setOperators(A, A)
            petsctools.set_from_options(ksp, parameters=linear_parameters, options_prefix=prefix + "derivative_")
            self._multigrid(ksp.getPC(), transposed)
            self._ksp[transposed] = ksp

    def _vector(self, run: Run) -> PETSc.Vec:
        count = run.program.parts * run.mesh.owned * run.primitives.features * run.images
        return PETSc.Vec().createMPI((count, None), comm=self.comm)

    def _matrix(self, context, rows: Run, columns: Run) -> PETSc.Mat:
        sizes = [(self._vector(r).getLocalSize(), None) for r in (rows, columns)]
        matrix = PETSc.Mat().createPython(sizes, context=context, comm=self.comm)
        matrix.setUp()
        return matrix

    def _multigrid(self, pc: PETSc.PC, transposed: bool) -> None:
        if pc.getType() != "mg":
            return
        count = len(self.runs)
        pc.setMGLevels(count)
        for i, run in enumerate(self.runs):  # PETSc's level 0 is the coarsest
            level = count - 1 - i
            A = self._matrix(_Operator(run, transposed), run, run)
            pc.getMGSmoother(level).setOperators(A, A)
            if i + 1 < count:
                coarse = self.runs[i + 1]
                for up in (True, False):
                    shell = _Between(self.levels[i], run, coarse, transposed, up)
                    matrix = self._matrix(shell, *((run, coarse) if up else (coarse, run)))
                    (pc.setMGInterpolation if up else pc.setMGRestriction)(level, matrix)
        pc.setFromOptions()

    def _count(self, ksp, iteration, norm) -> None:
        self._krylov = iteration

    def _residual(self, snes, x, F) -> None:
        U = fields_of(self.run, x, "newton")
        G = self.run.evaluate(U)
        moved = [u[: self.run.mesh.owned] - y[: self.run.mesh.owned] for u, y in zip(U, self._right, strict=True)]
        write(self.run, F, moved, G)

    def _linearise(self, snes, x, A, B) -> None:
        if snes is not None and snes.getIterationNumber():
            self.krylov_iterations.append(self._krylov)
        U = fields_of(self.run, x, "newton")
        self.run.evaluate(U)
        for i, run in enumerate(self.runs[1:]):
            fine = self.runs[i].mesh.owned
            coarse = []
            for k, u in enumerate(U):
                field = run.buffer("state", -1, k)
                field[: run.mesh.owned] = self.levels[i].restrict(u[:fine], False)
                coarse.append(field)
            U = coarse
            run.at(self.run.S, self.run.b, self.run.h).evaluate(U)
        A.assemble()

    def nonlinear(self, U: list[np.ndarray], right: list[np.ndarray]) -> None:
        """Solve U - g(U) = right from the first guess in U, which is overwritten; g is linearised there."""
        self._right, self._krylov = right, 0
        write(self.run, self._x, U, [None] * len(U))
        with petsctools.inserted_options(self._snes):
            self._snes.solve(None, self._x)
        self.newton_iterations.append(self._snes.getIterationNumber())
        self.krylov_iterations.append(self._krylov)
        reason = self._snes.getConvergedReason()
        if reason < 0 or not np.isfinite(self._snes.getFunctionNorm()):
            raise StageSolveError(
                f"Newton's method for an implicit step of h = {self.run.h:g} stopped after "
                f"{self._snes.getIterationNumber()} iterations (SNES reason {reason}, KSP reason "
                f"{self._snes.getKSP().getConvergedReason()}, residual {self._snes.getFunctionNorm():.3g}). Take more "
                f"layers or smaller controls, or try -{self.prefix}snes_max_it, -{self.prefix}ksp_max_it, "
                f"-{self.prefix}snes_monitor, -{self.prefix}ksp_monitor."
            )
        for u, value in zip(U, fields_of(self.run, self._x, "solution"), strict=True):
            u[:] = value
        self._linearise(None, self._x, self._snes.getJacobian()[0], None)

    def linear(self, right: list, out: list[np.ndarray], transposed: bool) -> None:
        """Solve with A = I - g'(U), or its transpose, at the last solution."""
        ksp, b, x = self._ksp[transposed], self._vector(self.run), self._vector(self.run)
        write(self.run, b, right, [None] * len(right))
        with petsctools.inserted_options(ksp):
            ksp.solve(b, x)
        if ksp.getConvergedReason() < 0:
            raise StageSolveError(
                f"The {'transposed ' if transposed else ''}linear solve of an implicit step stopped after "
                f"{ksp.getIterationNumber()} iterations (KSP reason {ksp.getConvergedReason()}). Try "
                f"-{self.prefix}derivative_ksp_max_it, -{self.prefix}derivative_ksp_monitor."
            )
        for field, value in zip(out, fields_of(self.run, x, "solution"), strict=True):
            field[:] = value
