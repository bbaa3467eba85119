"""The operators of a network on all coarser meshes of its hierarchy, and interpolation between their spaces."""

from __future__ import annotations

from firedrake import TrialFunction, assemble, interpolate
from firedrake.functionspaceimpl import WithGeometry
from firedrake.mg.utils import get_level
from petsc4py import PETSc
from pyadjoint import stop_annotating

from ctrlnet.operators.assembled import Operators

__all__ = ["interpolation_matrix", "operators_by_level"]


def operators_by_level(operators: Operators) -> list[Operators]:
    """Return the operators on their mesh and, rediscretised, on all coarser ones of its hierarchy, finest first."""
    hierarchy, number = get_level(operators.mesh)
    coarser = [] if hierarchy is None else [hierarchy[k] for k in range(int(number) - 1, -1, -1)]
    return [operators, *(operators.on(operators.space.reconstruct(mesh=mesh)) for mesh in coarser)]


def interpolation_matrix(source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
    """Return the matrix of interpolation between two spaces, (target nodes, source nodes), a copy of the caller's."""
    with stop_annotating():
        return assemble(interpolate(TrialFunction(source), target)).petscmat.copy()
