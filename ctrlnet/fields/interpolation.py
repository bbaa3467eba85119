"""Matrices of linear interpolation from points to the nodes of a mesh, with rows that sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np
from firedrake import VertexOnlyMesh
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint import stop_annotating
from scipy import sparse
from scipy.spatial import ConvexHull, Delaunay, QhullError, cKDTree

from ctrlnet.fields.nodal_transfer import node_places

__all__ = ["checked_grid", "on_grid", "scattered"]

# Barycentric coordinates above minus this are inside.
_INSIDE = 1e-9
# Of its radius: how far from a sphere a point may be that belongs to it.
_OFF_SPHERE = 0.01
# Triangles near a node that it is looked for in, before it is in all of them.
_NEAR = 24


def scattered(points: np.ndarray, V: WithGeometry) -> sparse.csr_array:
    """Return the matrix (owned nodes, points) of linear interpolation in triangles of points; outside, the nearest.

    Raises
    ------
    ValueError
        If points have another dimension than the mesh, some lie outside of it, or there are too few to span it.
    """
    mesh, places = V.mesh(), node_places(V)
    dim = mesh.geometric_dimension
    if points.shape[1] != dim:
        raise ValueError(f"Points in {points.shape[1]} dimensions are no points of a mesh in {dim}.")
    on_sphere = mesh.topological_dimension < dim
    _check_inside(points, places, V, on_sphere)
    if dim == 1:
        return _on_line(points[:, 0], places[:, 0])
    try:
        if on_sphere:
            return _on_sphere(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (points, places)))
        triangles = Delaunay(points)
    except QhullError as error:
        raise ValueError(
            f"{len(points)} points do not span {dim} dimensions, so that nothing can be interpolated between them. "
            "Give more, or points that are not in one line or plane.") from error
    cell = triangles.find_simplex(places)
    affine = triangles.transform[cell]
    first = np.einsum("nij,nj->ni", affine[:, :dim], places - affine[:, dim])
    weights = np.column_stack([first, 1 - first.sum(axis=1)])
    return _matrix(points, places, cell >= 0, triangles.simplices[cell], weights)


def _check_inside(points: np.ndarray, places: np.ndarray, V: WithGeometry, on_sphere: bool) -> None:
    comm = V.mesh().comm
    if on_sphere:
        radius = comm.allreduce(np.linalg.norm(places, axis=1).max(initial=0.0), op=max)
        outside = int((np.abs(np.linalg.norm(points, axis=1) - radius) > _OFF_SPHERE * radius).sum())
    else:
        with stop_annotating():
            found = VertexOnlyMesh(V.mesh(), points, missing_points_behaviour="ignore", redundant=True)
        outside = len(points) - comm.allreduce(found.cell_set.size)
    if outside:
        raise ValueError(
            f"{outside} of {len(points)} points lie outside of the mesh. Leave them out, or give their coordinates in "
            "the unit and order of the mesh's own.")


def _matrix(
    points: np.ndarray, places: np.ndarray, inside: np.ndarray, corners: np.ndarray, weights: np.ndarray
) -> sparse.csr_array:
    """Return the matrix of weights (nodes, corners) of some points where a node is inside, else of the nearest one."""
    at = np.flatnonzero(inside)
    outside = np.flatnonzero(~inside)
    nearest = cKDTree(points).query(places[outside])[1] if outside.size else outside
    rows = np.concatenate([np.repeat(at, corners.shape[1]), outside])
    columns = np.concatenate([corners[at].ravel(), nearest])
    values = np.clip(np.concatenate([weights[at].ravel(), np.ones(outside.size)]), 0.0, None)
    out = sparse.coo_array((values, (rows, columns)), (len(places), len(points))).tocsr()
    return sparse.csr_array(sparse.diags_array(1.0 / np.asarray(out.sum(axis=1)).ravel()) @ out)


def _on_line(points: np.ndarray, places: np.ndarray) -> sparse.csr_array:
    order = np.argsort(points)
    x = points[order]
    right = np.clip(np.searchsorted(x, places), 1, max(len(x) - 1, 1))
    left = right - 1
    if len(x) == 1:
        return sparse.csr_array(np.ones((len(places), 1)))
    share = np.clip((places - x[left]) / np.maximum(x[right] - x[left], 1e-300), 0.0, 1.0)
    corners, weights = np.column_stack([order[left], order[right]]), np.column_stack([1 - share, share])
    return _matrix(points[:, None], places[:, None], np.ones(len(places), bool), corners, weights)


def _on_sphere(points: np.ndarray, places: np.ndarray) -> sparse.csr_array:
    """Return the weights in the triangles of the points' hull that the radii of nodes pass through."""
    triangles = ConvexHull(points).simplices
    inverse = np.linalg.pinv(points[triangles].swapaxes(1, 2))  # columns are corners
    tree = cKDTree(points[triangles].mean(axis=1))
    corners, weights = np.zeros((len(places), 3), int), np.zeros((len(places), 3))
    missing = np.arange(len(places))
    for count in {min(_NEAR, len(triangles)), len(triangles)}:
        if not missing.size:
            break
        for part in np.array_split(missing, max(1, missing.size * count // 10**6)):
            near = tree.query(places[part], k=count)[1].reshape(part.size, -1)
            inside = np.einsum("nkij,nj->nki", inverse[near], places[part])
            best = inside.min(axis=2).argmax(axis=1)
            each = np.arange(part.size)
            corners[part], weights[part] = triangles[near[each, best]], inside[each, best]
        missing = missing[weights[missing].min(axis=1) < -_INSIDE]
    return _matrix(points, places, weights.min(axis=1, initial=0.0) >= -_INSIDE, corners, weights)


def checked_grid(latitudes: Any, longitudes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes as arrays.

    Raises
    ------
    ValueError
        If latitudes do not go up or down within -90 to 90 degrees, or longitudes up over less than 360.
    """
    lat, lon = (np.asarray(a, dtype=float) for a in (latitudes, longitudes))
    steps = np.diff(lat) if lat.ndim == 1 else np.zeros(1)
    if lat.size < 2 or np.abs(lat).max() > 90 or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            "Latitudes are at least 2 numbers from -90 to 90 degrees, increasing or decreasing; received "
            f"{np.array2string(lat, threshold=4)}.")
    if lon.ndim != 1 or lon.size < 2 or not (np.diff(lon) > 0).all() or lon[-1] - lon[0] >= 360:
        raise ValueError(
            "Longitudes are at least 2 increasing numbers over less than 360 degrees; received "
            f"{np.array2string(lon, threshold=4)}.")
    return lat, lon


def on_grid(latitudes: np.ndarray, longitudes: np.ndarray, V: WithGeometry) -> sparse.csr_array:
    """Return the matrix (owned nodes, rows * columns) of bilinear interpolation on a globe around the origin.

    Between the last row and a pole it goes to the mean of that row.

    Raises
    ------
    ValueError
        If the mesh is not in three dimensions.
    """
    places = node_places(V)
    if places.shape[1] != 3:
        raise ValueError(
            f"Latitudes and longitudes are places on a globe, received a mesh in {places.shape[1]} dimensions.")
    lat = np.degrees(np.arcsin(np.clip(places[:, 2] / np.linalg.norm(places, axis=1), -1, 1)))
    lon = np.degrees(np.arctan2(places[:, 1], places[:, 0]))
    order = np.argsort(latitudes)
    rows, columns = len(latitudes), len(longitudes)
    # Rows of the grid from south to north between two of the poles, each of which is the mean of its neighbour.
    mean, grid = np.full((columns, columns), 1.0 / columns), np.eye(columns)
    blocks = [[None] * rows for _ in range(rows + 2)]
    for at, (row, block) in enumerate([(order[0], mean), *((k, grid) for k in order), (order[-1], mean)]):
        blocks[at][row] = sparse.csr_array(block)
    extended = sparse.block_array(blocks, format="csr")
    edges = np.concatenate([[-90.0], latitudes[order], [90.0]])
    below = np.clip(np.searchsorted(edges, lat, side="right") - 1, 0, rows)
    north = (lat - edges[below]) / np.maximum(edges[below + 1] - edges[below], 1e-300)
    turned = (lon - longitudes[0]) % 360.0
    around = np.append(longitudes - longitudes[0], 360.0)
    left = np.clip(np.searchsorted(around, turned, side="right") - 1, 0, columns - 1)
    east = (turned - around[left]) / (around[left + 1] - around[left])
    nodes_of = np.arange(len(places))
    entries = [
        (nodes_of, (below + up) * columns + (left + right) % columns, share_up * share_right)
        for up, share_up in enumerate((1 - north, north)) for right, share_right in enumerate((1 - east, east))]
    nodes, number, weight = (np.concatenate(part) for part in zip(*entries, strict=True))
    bilinear = sparse.coo_array((weight, (nodes, number)), (len(places), extended.shape[0])).tocsr()
    return sparse.csr_array(bilinear @ extended)
