"""Refinement of some cells or of all, as the next level of a mesh's hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np
from firedrake import Function, FunctionSpace, MeshHierarchy, SpatialCoordinate, VectorFunctionSpace
from firedrake.cython import mgimpl
from firedrake.mesh import MeshGeometry
from firedrake.mg.mesh import HierarchyBase
from firedrake.mg.utils import get_level
from mpi4py import MPI
from pyadjoint.tape import no_annotations
from scipy.spatial import cKDTree

__all__ = ["marked_places", "marks_at", "refined"]

_SIMPLICES = ("interval", "triangle", "tetrahedron")
_ROUND = 1e-10  # relative; nodes of a sphere are as close to it
# Midpoints of the cells that were marked, of all ranks, by what became of the mesh; None where all were divided.
_MARKED: WeakKeyDictionary[MeshGeometry, np.ndarray | None] = WeakKeyDictionary()


@no_annotations
def refined(mesh: MeshGeometry, marked: np.ndarray | None = None) -> MeshGeometry:
    """Return a mesh with some of the cells divided, or all; it is the next level of the given one's hierarchy.

    Marked simplices are divided by bisection of their longest edges (Plaza and Carey, "Local refinement of simplicial
    grids based on the skeleton", 2000; PETSc's ``refine_sbr``), with those neighbours that would else have hanging
    nodes. All cells are divided as by Firedrake's ``MeshHierarchy``. New nodes of a sphere, a surface whose nodes are
    equally far from the origin, are moved to it. Cells stay on their rank.

    Parameters
    ----------
    mesh
        The finest of its hierarchy so far, or one without; what was above it is no level of the new hierarchy.
    marked
        (cells that this rank owns,), true where they are to be divided. Default: all of them.

    Raises
    ------
    ValueError
        If the mesh is extruded; or if some cells are marked and they are no simplices, which are refined as a whole,
        the marks are not one a cell, or there are none.
    """
    if mesh.extruded:
        raise ValueError(
            f"{mesh} is extruded, and its columns cannot be refined. Refine the mesh it is extruded from, and extrude "
            "that one.")
    below, number = get_level(mesh)
    lower = [mesh] if below is None else [below[k] for k in range(int(number) + 1)]
    if marked is None:
        pair = MeshHierarchy(mesh, 1)
        fine, (down, up) = pair[1], (pair.coarse_to_fine_cells[Fraction(0)], pair.fine_to_coarse_cells[Fraction(1)])
    else:
        fine = mesh.refine_marked_elements(_markers(mesh, marked))
        down, up = mgimpl.coarse_to_fine_cells(mesh, fine, fine._adaptive_fine_to_coarse_points)
    _back_to_the_sphere(mesh, fine)
    downs = {} if below is None else {Fraction(k): below.coarse_to_fine_cells[Fraction(k)] for k in range(int(number))}
    ups = {Fraction(0): None}
    if below is not None:
        ups |= {Fraction(k): below.fine_to_coarse_cells[Fraction(k)] for k in range(1, int(number) + 1)}
    HierarchyBase(lower, downs, ups, nested=True).add_mesh(fine, down, up)
    _MARKED[fine] = None if marked is None else np.concatenate(mesh.comm.allgather(_midpoints(mesh)[marked]))
    return fine


def marked_places(meshes: Sequence[MeshGeometry]) -> list[np.ndarray | None] | None:
    """Return the midpoints of the cells by whose division :func:`refined` made each mesh, or None if it did not.

    None in the list stands for the division of all cells.
    """
    return [_MARKED[mesh] for mesh in meshes] if all(mesh in _MARKED for mesh in meshes) else None


@no_annotations
def marks_at(mesh: MeshGeometry, places: np.ndarray) -> np.ndarray:
    """Return the marks of this rank's cells whose midpoints are among places (n, dim)."""
    here = _midpoints(mesh)
    if not len(here) or not len(places):
        return np.zeros(len(here), dtype=bool)
    tree = cKDTree(np.asarray(places, dtype=float).reshape(-1, here.shape[1]))
    size = np.abs(here).max()
    return tree.query(here)[0] <= 1e-9 * size


def _midpoints(mesh: MeshGeometry) -> np.ndarray:
    X = Function(VectorFunctionSpace(mesh, "DG", 0)).interpolate(SpatialCoordinate(mesh))
    return X.dat.data_ro.reshape(-1, mesh.geometric_dimension).copy()


def _markers(mesh: MeshGeometry, marked: np.ndarray) -> Function:
    marks, cell = np.asarray(marked), mesh.ufl_cell().cellname
    if cell not in _SIMPLICES:
        raise ValueError(
            f"Single cells of {mesh} cannot be divided: they are of the kind {cell}, which are refined as a whole. "
            "Take a mesh of triangles or tetrahedra, or refined(mesh) for all cells.")
    markers = Function(FunctionSpace(mesh, "DG", 0))
    good = marks.dtype == bool and marks.shape == markers.dat.data_ro.shape
    if not mesh.comm.allreduce(good, op=MPI.LAND):
        raise ValueError(
            f"Marks are boolean, one for each of the {markers.dat.data_ro.size} cells that this rank owns; received "
            f"{marks.dtype} of shape {marks.shape}.")
    if not mesh.comm.allreduce(int(marks.sum())):
        raise ValueError("No cell is marked, so there is nothing to refine. Mark a larger share.")
    markers.dat.data_wo[:] = marks
    return markers


def _back_to_the_sphere(coarse: MeshGeometry, fine: MeshGeometry) -> None:
    if coarse.topological_dimension == coarse.geometric_dimension:
        return
    radii = np.linalg.norm(coarse.coordinates.dat.data_ro.reshape(-1, coarse.geometric_dimension), axis=1)
    low = coarse.comm.allreduce(radii.min(initial=np.inf), op=MPI.MIN)
    high = coarse.comm.allreduce(radii.max(initial=0.0), op=MPI.MAX)
    if high - low <= _ROUND * high and coarse.coordinates.ufl_element().degree() == 1:
        places = fine.coordinates.dat.data_with_halos
        places *= high / np.linalg.norm(places, axis=1, keepdims=True)
