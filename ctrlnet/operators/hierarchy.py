r"""The operators of a network on all coarser meshes of its hierarchy, and interpolation between their spaces.

*Surfaces.* The levels of a curved surface do not nest: refinement moves new nodes on to it, off the coarse facets.
There the hierarchy itself says where a fine node belongs: at a vertex, in the middle of an edge or of a cell of the
coarse mesh, and P takes the coarse function's value there. Its weights are 1, 1/2 and 1/4 whatever the surface, so
constants are kept, and no weight depends on how ranks share the cells.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from firedrake import TrialFunction, assemble, interpolate
from firedrake.exceptions import DofNotDefinedError
from firedrake.functionspaceimpl import WithGeometry
from firedrake.mesh import MeshGeometry
from firedrake.mg.interface import assemble_prolongation_aij
from firedrake.mg.mesh import HierarchyBase
from firedrake.mg.utils import get_level, set_level
from petsc4py import PETSc
from pyadjoint import stop_annotating

from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.halo import destroy_what_waits

__all__ = [
    "NestingError", "interpolation_matrix", "levels_of_a_surface", "matrix_from_entries", "not_covered",
    "operators_by_level",
]

_QUARTERS = 4


class NestingError(ValueError):
    """A coarse space is not contained in a fine one, where a transfer needs that."""


def operators_by_level(operators: Operators) -> list[Operators]:
    """Return the operators on their mesh and, rediscretised, on all coarser ones of its hierarchy, finest first."""
    hierarchy, number = _level(operators.mesh)
    coarser = [] if hierarchy is None else [hierarchy[k] for k in range(number - 1, -1, -1)]
    return [operators, *(operators.on(operators.space.reconstruct(mesh=mesh)) for mesh in coarser)]


def interpolation_matrix(source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
    """Return the matrix of interpolation between two spaces, (target nodes, source nodes), a copy of the caller's.

    On two levels of a surface it is the hierarchy's own: prolongation, or from fine to coarse injection.

    Raises
    ------
    NestingError
        If a node of the target is far outside of the source mesh.
    """
    destroy_what_waits(target.mesh().comm)  # interpolation between meshes leaves much
    with stop_annotating():
        levels = levels_of_a_surface(source, target)
        if not levels:
            try:
                return assemble(interpolate(TrialFunction(source), target)).petscmat.copy()
            except DofNotDefinedError as error:
                raise not_covered(source, target) from error
        pairs = list(zip(levels, levels[1:], strict=False))
        if levels[0].mesh() is source.mesh():
            return reduce(lambda P, Q: Q.matMult(P), (_prolongation(*pair) for pair in pairs))
        return reduce(lambda R, Q: R.matMult(Q), (_injection(*pair) for pair in pairs))


def not_covered(source: WithGeometry, target: WithGeometry) -> NestingError:
    """Return the error of two meshes that do not cover one domain."""
    return NestingError(
        f"{source.mesh()} does not cover the nodes of {target.mesh()}. Give two meshes of one domain; of a curved "
        "surface two levels of one hierarchy, such as sphere_hierarchy's. (Levels of a curved shell do not cover each "
        "other: take a mesh without a hierarchy.)"
    )


def levels_of_a_surface(V: WithGeometry, W: WithGeometry) -> list[WithGeometry]:
    """Return the spaces on all levels from the coarser of two to the finer, if both are on one surface's hierarchy.

    Of anything else, the same mesh and other elements among it, return none.
    """
    meshes = V.mesh(), W.mesh()
    surface = all(mesh.topological_dimension < mesh.geometric_dimension for mesh in meshes)
    hierarchy, first, last = _common(*meshes)
    if not surface or hierarchy is None or first == last:
        return []
    if hierarchy.refinements_per_level != 1 or V.ufl_element() != W.ufl_element():
        return []
    between = [V.reconstruct(mesh=hierarchy[k]) for k in range(min(first, last) + 1, max(first, last))]
    return [V, *between, W] if first < last else [W, *between, V]


def _common(mesh: MeshGeometry, other: MeshGeometry) -> tuple[HierarchyBase | None, int, int]:
    """Return the hierarchy that has both meshes, and their places there.

    A mesh may be in several, one for each way in which it was refined further, and knows of the last one alone. Of the
    one that is found all levels know then.
    """
    for given, sought, swap in ((mesh, other, False), (other, mesh, True)):
        hierarchy, here = _level(given)
        there = [] if hierarchy is None else [k for k, level in enumerate(hierarchy) if level is sought]
        if there:
            assert hierarchy is not None
            for number, level in enumerate(hierarchy):
                set_level(level, hierarchy, number)
            return (hierarchy, there[0], here) if swap else (hierarchy, here, there[0])
    return None, 0, 0


def _level(mesh: MeshGeometry) -> tuple[HierarchyBase | None, int]:
    """Return a mesh's hierarchy and its place there; none for one that only shares its cells with a level."""
    hierarchy, number = get_level(mesh)
    if hierarchy is None or hierarchy[int(number)] is not mesh:
        return None, 0
    return hierarchy, int(number)


def _prolongation(coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
    """Return the weights of a refined surface, one level apart.

    Firedrake's are those of the closest points on the facets, up to 0.06 away from the places that refinement means.

    Raises
    ------
    ValueError
        If they are further away: the mesh was moved, or is too coarse for its curvature.
    """
    closest = assemble_prolongation_aij(coarse, fine).petscmat
    start, columns, values = closest.getValuesCSR()
    weights = np.rint(_QUARTERS * values) / _QUARTERS
    rows = np.repeat(np.arange(start.size - 1), np.diff(start))
    sums = np.bincount(rows, weights, minlength=start.size - 1)
    if not fine.mesh().comm.allreduce(bool((sums == 1).all() and (weights >= 0).all()), op=min):
        raise ValueError(
            f"The nodes of {fine.mesh()} are not where refining {coarse.mesh()} puts them. Move every level of a "
            "surface's hierarchy alike before its first use, and start from a mesh that resolves the curvature."
        )
    return matrix_from_entries(closest, rows[weights > 0], columns[weights > 0], weights[weights > 0])


def _injection(coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
    """Return the map of a fine function to its values at the coarse nodes, which are fine nodes too."""
    P = _prolongation(coarse, fine)
    start, columns, values = P.getValuesCSR()
    rows = np.repeat(np.arange(start.size - 1), np.diff(start))
    same = values == 1
    return matrix_from_entries(P, rows[same], columns[same], values[same]).transpose(PETSc.Mat())


def matrix_from_entries(like: PETSc.Mat, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> PETSc.Mat:
    """Return a matrix of the same layout with these entries: this rank's rows from 0, global columns."""
    out = PETSc.Mat().create(comm=like.comm)
    out.setSizes(like.getSizes())
    out.setType(PETSc.Mat.Type.AIJ)
    first = like.getOwnershipRange()[0]
    out.setPreallocationCOO((first + rows).astype(PETSc.IntType), columns.astype(PETSc.IntType))
    out.setValuesCOO(values)
    return out
