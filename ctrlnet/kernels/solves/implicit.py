r"""Implicit stages by Newton's method and multigrid: :math:`U - g(U) = Y` for all images of a chunk at once.

PETSc's SNES and KSP work on one vector, the chunk's fields; operators are applied matrix-free by the kernels. The
preconditioner is geometric multigrid (PCMG) on the mesh hierarchy: on each level the operators are rediscretised,
and g is linearised at the restricted state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import petsctools
from petsc4py import PETSc

from ctrlnet.errors import StageSolveError
from ctrlnet.kernels.solves.field_map import FieldMap, FieldMapShell, Shell, shell_matrix
from ctrlnet.kernels.solves.levels import Level, connect
from ctrlnet.kernels.solves.minimal_residual import MinimalResidual
from ctrlnet.kernels.solves.vectors import fields_of, parts_of, write
from ctrlnet.kernels.traced.on_mesh import OnMesh
from ctrlnet.kernels.traced.run import Run

__all__ = ["ImplicitStage"]

_NEAR = 1e-4  # of Newton's tolerance over the residual: one Krylov iteration more then saves a Newton step


class _Operator:
    """The shell of A = I - g'(U), or of its transpose, on one level."""

    def __init__(self, run: Run, transposed: bool):
        self.run, self.transposed = run, transposed
        self._changes = [None] * len(run.program.operations)

    def terms(self, v: list[np.ndarray]) -> list[list[tuple[float, np.ndarray]]]:
        """Return A v, for each part factors and fields whose sum it is; v has room for ghost rows."""
        if self.transposed:
            moved = [[(1.0, f)] if f is not None else [] for f in self.run.adjoint(v, what="krylov adjoint")]
        else:
            moved = self.run.tangent_terms(v, "krylov change", self._changes)
        return [[(1.0, x), *((-c, f) for c, f in terms)] for x, terms in zip(v, moved, strict=True)]

    def mult(self, _: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        write(self.run, y, self.terms(fields_of(self.run, x, "krylov")))


class ImplicitStage:
    """Solves with one stage of a chunk: nonlinear, linear and transposed.

    Parameters
    ----------
    run
        The stage's g on the network's mesh.
    levels
        Of the hierarchy, finest first; one alone: no multigrid.
    meshes
        Rows and kernels on each level.
    parameters, linear_parameters
        PETSc options of SNES with its KSP, and of the KSP of derivatives.
    prefix
        Of the options a user gives on the command line.
    """

    def __init__(
        self, run: Run, levels: Sequence[Level], meshes: Sequence[OnMesh], parameters: dict, linear_parameters: dict,
        prefix: str,
    ):
        self.run, self.levels, self.prefix = run, levels, prefix
        self.runs = [run] + [Run(run.program, mesh, run.images) for mesh in meshes[1:]]
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
        with petsctools.inserted_options(self._snes):
            self._multigrid(self._snes.getKSP().getPC(), False)
        self._forcing = self._snes.getKSP().getTolerances()[0]
        self._ksp = {}
        for transposed in (False, True):
            ksp = PETSc.KSP().create(self.comm)
            A = J if not transposed else self._matrix(_Operator(run, True), run, run)
            ksp.setOperators(A, A)
            petsctools.set_from_options(ksp, parameters=linear_parameters, options_prefix=prefix + "derivative_")
            with petsctools.inserted_options(ksp):
                self._multigrid(ksp.getPC(), transposed)
            self._ksp[transposed] = ksp

    @staticmethod
    def _size(run: Run) -> int:
        return run.program.parts * run.mesh.owned * run.primitives.features * run.images

    def _vector(self, run: Run) -> PETSc.Vec:
        return PETSc.Vec().createMPI((self._size(run), None), comm=self.comm)

    def _matrix(self, context: Shell, rows: Run, columns: Run) -> PETSc.Mat:
        return shell_matrix(context, self._size(rows), self._size(columns), self.comm)

    def _transfers(self, i: int, transposed: bool) -> tuple[PETSc.Mat, PETSc.Mat]:
        """Return interpolation to level i and restriction from it, for solves with the operator or its transpose."""
        level, fine, coarse = self.levels[i], self.runs[i], self.runs[i + 1]
        up, down = (
            (level.restrict_transposed, level.prolong_transposed) if transposed else (level.prolong, level.restrict))

        def matrix(field_map: FieldMap, target: Run, source: Run) -> PETSc.Mat:
            return self._matrix(
                FieldMapShell(field_map, partial(parts_of, source), partial(parts_of, target)), target, source)

        return matrix(up, fine, coarse), matrix(down, coarse, fine)

    def _multigrid(self, pc: PETSc.PC, transposed: bool) -> None:
        if pc.getType() != PETSc.PC.Type.MG:
            return
        operators = [_Operator(run, transposed) for run in self.runs]
        matrices = [self._matrix(o, o.run, o.run) for o in operators]
        transfers = [self._transfers(i, transposed) for i in range(len(self.runs) - 1)]
        for operator, smoother in zip(operators[:-1], connect(pc, matrices, transfers), strict=False):
            smoother.setFromOptions()
            if smoother.getType() == PETSc.KSP.Type.PYTHON:
                smoother.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
                smoother.setPCSide(PETSc.PC.Side.RIGHT)
                smoother.setPythonContext(MinimalResidual(operator, self.comm))
        pc.setFromOptions()

    def _count(self, ksp: PETSc.KSP, iteration: int, norm: float) -> None:
        self._krylov = iteration

    def _residual(self, snes: PETSc.SNES, x: PETSc.Vec, F: PETSc.Vec) -> None:
        U = fields_of(self.run, x, "newton")
        G = self.run.evaluate(U)
        write(self.run, F, [[(1.0, u), (-1.0, y), (-1.0, g)] for u, y, g in zip(U, self._right, G, strict=True)])

    def _linearise(self, snes: PETSc.SNES | None, x: PETSc.Vec, A: PETSc.Mat, B: PETSc.Mat | None) -> None:
        if snes is not None:
            if snes.getIterationNumber():
                self.krylov_iterations.append(self._krylov)
            self._set_forcing(snes)
        U = fields_of(self.run, x, "newton")
        self.run.evaluate(U)
        for i, run in enumerate(self.runs[1:]):
            fine = self.runs[i].mesh.owned
            coarse = []
            for k, u in enumerate(U):
                field = run.buffer("state", -1, k)
                self.levels[i].restrict(u[:fine], field[: run.mesh.owned])
                coarse.append(field)
            U = coarse
            run.at(self.run.controls, self.run.h).evaluate(U)
        A.assemble()

    def _set_forcing(self, snes: PETSc.SNES) -> None:
        """Solve this Newton step to the tolerance of the last one, if that is near; else to the Krylov method's own."""
        norm = snes.getFunctionNorm()
        if snes.getIterationNumber() == 0:
            self._first_norm = norm
        rtol, atol = snes.getTolerances()[:2]
        wanted = max(atol, rtol * self._first_norm) / norm if norm else 1.0
        forcing = 0.9 * wanted if _NEAR < wanted < self._forcing else self._forcing
        snes.getKSP().setTolerances(rtol=forcing)

    def nonlinear(self, U: list[np.ndarray], right: list[np.ndarray]) -> None:
        """Solve U - g(U) = right from the first guess in U, which is overwritten; g is linearised there."""
        self._right, self._krylov = right, 0
        write(self.run, self._x, [[(1.0, u)] for u in U])
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

    def linear(self, right: list[np.ndarray | None], out: list[np.ndarray], transposed: bool) -> None:
        """Solve with A = I - g'(U), or its transpose, at the last solution."""
        ksp, b, x = self._ksp[transposed], self._vector(self.run), self._vector(self.run)
        write(self.run, b, [[] if f is None else [(1.0, f)] for f in right])
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
