"""Nodal values by the places of their nodes, so that a file serves any number of ranks."""

from __future__ import annotations

import zlib

import numpy as np
from firedrake import Function, FunctionSpace, SpatialCoordinate, VectorFunctionSpace
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint import stop_annotating
from pyop2 import op2
from scipy.spatial import cKDTree
from ufl import H1

__all__ = ["matching", "numbering_of", "places_of"]

_SAME = 1e-9  # relative to the size of the domain


def places_of(V: WithGeometry) -> np.ndarray:
    """Return what tells the nodes of a scalar space apart, (nodes of all ranks, numbers), the same on every rank.

    The least and the largest coordinates that cells give a node, which differ where a periodic mesh closes; and the
    middle of its cell where nodes belong to one cell alone. Collective.
    """
    with stop_annotating():
        own = _places(V)
    return np.concatenate(V.mesh().comm.allgather(own))


def _places(V: WithGeometry) -> np.ndarray:
    mesh = V.mesh()
    x = SpatialCoordinate(mesh)
    vectors = VectorFunctionSpace(mesh, V.ufl_element())
    parts = []
    for access, start in ((op2.MIN, np.inf), (op2.MAX, -np.inf)):
        place = Function(vectors)
        place.dat.data_wo_with_halos[:] = start
        place.interpolate(x, access=access)
        parts.append(place.dat.data_ro.reshape(-1, mesh.geometric_dimension).copy())
    if V.ufl_element() in H1:
        return np.hstack(parts)
    middles = Function(VectorFunctionSpace(mesh, FunctionSpace(mesh, "DG", 0).ufl_element())).interpolate(x)
    parts.append(Function(vectors).interpolate(middles).dat.data_ro.reshape(-1, mesh.geometric_dimension).copy())
    return np.hstack(parts)


def numbering_of(V: WithGeometry) -> str:
    """Return a checksum of the places of a scalar space's nodes in their order, which ranks share. Collective."""
    places = places_of(V)
    size = float(np.ptp(places)) or 1.0
    return f"{zlib.crc32(np.round(places / size, 7).tobytes()):08x} on {V.mesh().comm.size} ranks"


def matching(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """Return for each of our nodes the number of theirs at the same place; None if they are not the same nodes."""
    if theirs.shape != ours.shape:
        return None
    size = float(np.ptp(theirs, axis=0).max()) or 1.0
    near, number = cKDTree(theirs).query(ours)
    same = (near <= _SAME * size).all() and len(np.unique(number)) == len(ours)
    return number if same else None
