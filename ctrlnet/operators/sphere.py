r"""The sphere :math:`|x| = R`: a hierarchy of its meshes, and the frame (east, north) of tangent vectors."""

from __future__ import annotations

import math

import numpy as np
import ufl
from firedrake import COMM_WORLD, IcosahedralSphereMesh, Mesh, MeshHierarchy, as_vector, conditional, sqrt
from firedrake.mg.mesh import HierarchyBase
from mpi4py import MPI
from pyadjoint.tape import no_annotations

from ctrlnet.operators.forms import directional_derivative

__all__ = ["east", "north", "radius_of", "sphere_hierarchy"]


@no_annotations
def sphere_hierarchy(radius: float, refinements: int, comm: MPI.Comm = COMM_WORLD) -> HierarchyBase:
    r"""Return the icospheres of :math:`10\cdot 4^k + 2` nodes, k = 0 ... ``refinements``, as one hierarchy.

    Level k is ``IcosahedralSphereMesh(radius, k)``: the flat icosahedron refined, and its nodes projected to the sphere
    along their radii. (``MeshHierarchy(IcosahedralSphereMesh(radius, 0), k)`` projects after every refinement instead.
    Its cells change size at all edges of all coarser levels, not at those of the icosahedron alone: the lumped gradient
    of spherical harmonics of degree 1 to 4 is 1.5 to 2.2 times less accurate on 40,962 nodes.)

    Parameters
    ----------
    radius
        R, in the unit of the mesh.
    refinements
        Number of levels above the icosahedron. A hierarchy from level j on is ``list(hierarchy)[j:]``; multigrid goes
        down to the icosahedron in any case.
    comm
        The meshes' communicator.

    Raises
    ------
    ValueError
        If the radius is not positive or the number of levels negative.
    """
    if not 0 < radius < math.inf or refinements < 0:
        raise ValueError(
            f"A hierarchy of spheres needs a positive radius and a number of refinements, received radius={radius!r}, "
            f"refinements={refinements!r}."
        )
    icosahedron = IcosahedralSphereMesh(radius, refinement_level=0, comm=comm)
    # A mesh of copied coordinates knows of no sphere: Firedrake would otherwise project after each refinement.
    hierarchy = MeshHierarchy(Mesh(icosahedron.coordinates.copy(deepcopy=True)), refinements)
    for mesh in hierarchy:
        places = mesh.coordinates.dat.data_with_halos
        places *= radius / np.linalg.norm(places, axis=1, keepdims=True)
    return hierarchy


def radius_of(hierarchy: HierarchyBase) -> float | None:
    """Return the radius of what :func:`sphere_hierarchy` made; None of any other hierarchy. Collective."""
    first = hierarchy[0]
    if (first.topological_dimension, first.geometric_dimension) != (2, 3) or first.extruded:
        return None
    if hierarchy.refinements_per_level != 1:
        return None
    radii = np.linalg.norm(first.coordinates.dat.data_ro, axis=1)
    R = first.comm.allreduce(radii.max(initial=0.0), op=MPI.MAX)
    icosahedron = first.comm.allreduce(len(radii)) == 12
    for mesh in hierarchy:
        off = np.abs(np.linalg.norm(mesh.coordinates.dat.data_ro, axis=1) - R).max(initial=0.0)
        icosahedron = icosahedron and mesh.comm.allreduce(off, op=MPI.MAX) <= 1e-10 * R
    return float(R) if icosahedron else None


def _east(x: ufl.SpatialCoordinate) -> ufl.core.expr.Expr:
    """The unit vector along the parallel."""
    return as_vector((-x[1], x[0], 0.0)) / _from_axis(x)


def _north(x: ufl.SpatialCoordinate) -> ufl.core.expr.Expr:
    """The unit vector along the meridian."""
    along = as_vector((-x[0] * x[2], -x[1] * x[2], x[0] ** 2 + x[1] ** 2))
    return along / (_from_axis(x) * sqrt(ufl.dot(x, x)))


def _from_axis(x: ufl.SpatialCoordinate) -> ufl.core.expr.Expr:
    """The distance from the axis; at the poles, where there is no east or north and both are to be zero, R instead."""
    squared, R_squared = x[0] ** 2 + x[1] ** 2, ufl.dot(x, x)
    return sqrt(conditional(squared > 1e-20 * R_squared, squared, R_squared))


# On spheres around the origin, z their axis; at the poles, where there is no direction east, the operators are zero.
east = directional_derivative("east", _east)
north = directional_derivative("north", _north)
