r"""Images as functions: pixels are DG0, coarse pixels their averages, nodal values their projection.

*Orientation.* The axes of an image are those of space in reverse: the last one (columns) is x, the one
before (rows) is y, and in 3D the first one is z. Rows run down while y points up, so row 0 is the top of the
picture; x and z run with their axes. On a mesh whose bounding box is [x0, x1] x [y0, y1], a picture of
R x C pixels of width dx = (x1 - x0)/C and height dy = (y1 - y0)/R has pixel [r, c] on

    x0 + [c, c + 1] dx   x   y0 + [R - 1 - r, R - r] dy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from FIAT import create_quadrature, ufc_simplex
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI
from petsc4py import PETSc
from scipy import sparse

from ctrlnet.fields.pixel_map import PixelMap

__all__ = ["PixelProjection"]

# In pixels: how far a piece of a cell may reach over a pixel edge; round-off of its coordinates.
_TOLERANCE = 1e-11
# About so many pieces of cells are held at once.
_CHUNK = 20_000


class PixelProjection(PixelMap):
    r"""Projection of pixels to the nodal values of a CG1 or Q1 space with lumped mass.

    .. math::
        Y_i = \frac{1}{M_i} \int_\Omega I \phi_i \, dx, \qquad M_i = \int_\Omega \phi_i \, dx,

    with the image I constant on each pixel (DG0). The pixel grid covers the bounding box of the mesh. It is
    one sparse matrix, built once: a node's value is a weighted mean of the pixels in the support of its basis
    function. Constants are kept exactly: weights are positive and are divided by their own sum.

    Parameters
    ----------
    V
        Scalar CG1 or Q1 space on a mesh of intervals, triangles, quadrilaterals, tetrahedra, hexahedra or
        prisms, extruded or not, periodic or not, of equal geometric and topological dimension.
    pixel_shape
        The pixels of one image, in the order of its axes: (columns,), (rows, columns) or
        (layers, rows, columns); see the module on orientation.

    Attributes
    ----------
    V, pixel_shape
        As given.
    matrix : scipy.sparse.csr_array
        Shape (nodes owned by this rank, number of pixels), pixels in the C order of an image; its rows sum
        to one.

    Raises
    ------
    ValueError
        If the space is not a scalar CG1 or Q1 space, the mesh is a surface or has layers that vary, or
        ``pixel_shape`` does not fit the dimension of the mesh.

    Notes
    -----
    Each cell is divided into simplices and these are cut along the pixel edges, so that every piece lies in
    one pixel, and a rule as exact as the basis functions need integrates them over it. The result is exact to
    round-off for affine cells (straight simplices, parallelograms, parallelepipeds, their prisms), aligned
    with the pixels or not, smaller or larger. In other cells the simplices take the place of the curved map
    of the cell, an error of second order in its size; constants are kept exactly all the same.

    Contributions of cells to nodes of other ranks are added, so the values do not depend on the number of
    ranks beyond round-off.
    """

    def __init__(self, V: WithGeometry, pixel_shape: Sequence[int]) -> None:
        _check_space(V)
        mesh = V.mesh()
        shape = _checked_pixel_shape(pixel_shape, mesh.geometric_dimension)

        # The mesh in units of pixels, so that pixel k along an axis is [k, k + 1].
        coordinates = mesh.coordinates.dat.data_ro_with_halos.reshape(-1, mesh.geometric_dimension)
        low = coordinates.min(axis=0, initial=np.inf)
        high = coordinates.max(axis=0, initial=-np.inf)
        mesh.comm.Allreduce(MPI.IN_PLACE, low, op=MPI.MIN)
        mesh.comm.Allreduce(MPI.IN_PLACE, high, op=MPI.MAX)
        pixels = np.array(shape[::-1])
        cells = _Cells(V, (coordinates - low) * (pixels / (high - low)))

        weights = sparse.csr_array((V.node_set.total_size, math.prod(shape)))
        for nodes, position, values in cells.integrals():
            index = np.broadcast_to(_pixel_index(position, shape)[:, None], nodes.shape)
            entries = (values.ravel(), (nodes.ravel(), index.ravel()))
            weights += sparse.coo_array(entries, weights.shape).tocsr()
        weights = _add_over_ranks(V, weights)
        super().__init__(V, shape, sparse.csr_array(sparse.diags_array(1 / weights.sum(axis=1)) @ weights))


def _check_space(V: WithGeometry) -> None:
    mesh = V.mesh()
    # A mixed space has no single element, the space of constants none at all.
    element = V.finat_element if V.value_shape == () else None
    # One basis function a vertex and no other: that is CG1 or Q1, whatever its name.
    dofs = {} if element is None else element.entity_dofs()
    per_entity = {(k, len(d)) for k, entities in dofs.items() for d in entities.values()}
    vertices = {(k, 1) for k in dofs if not np.any(k)}
    if not vertices or {pair for pair in per_entity if pair[1]} != vertices:
        raise ValueError(
            f"Pixels cannot be projected to this space: received {V.ufl_element()}. Give a scalar space of "
            "degree 1, such as FunctionSpace(mesh, 'CG', 1)."
        )
    if mesh.geometric_dimension != mesh.topological_dimension:
        raise ValueError(
            f"Pixels cannot cover a surface: received a mesh of topological dimension "
            f"{mesh.topological_dimension} in {mesh.geometric_dimension} dimensions. Give a mesh of an "
            "interval, a plane region or a solid."
        )
    if mesh.extruded and mesh.variable_layers:
        raise ValueError(
            "Pixels cannot be projected to this mesh: received an extruded mesh whose number of layers "
            "varies. Give an extruded mesh with the same number of layers everywhere."
        )


def _checked_pixel_shape(pixel_shape: Sequence[int], dim: int) -> tuple[int, ...]:
    shape = tuple(np.atleast_1d(np.asarray(pixel_shape, dtype=object)))
    if len(shape) != dim or not all(isinstance(p, int | np.integer) and p > 0 for p in shape):
        raise ValueError(
            f"The pixel grid does not fit the mesh: received pixel_shape = {pixel_shape!r} on a mesh of "
            f"dimension {dim}. Give one positive integer per axis: (columns,), (rows, columns) or "
            "(layers, rows, columns)."
        )
    return tuple(int(p) for p in shape)


def _pixel_index(position: np.ndarray, pixel_shape: tuple[int, ...]) -> np.ndarray:
    """Return the flat index, in the C order of an image, of the pixel at positions (..., dim) in pixels."""
    pixels = np.array(pixel_shape[::-1])
    index = np.clip(np.floor(position).astype(int), 0, pixels - 1)
    if len(pixels) > 1:
        index[..., 1] = pixels[1] - 1 - index[..., 1]
    return np.ravel_multi_index(tuple(np.moveaxis(index[..., ::-1], -1, 0)), pixel_shape)


def _add_over_ranks(V: WithGeometry, local: sparse.csr_array) -> sparse.csr_array:
    """Return the rows of the nodes that this rank owns, with the contributions of all ranks added."""
    local = local.tocoo()
    matrix = PETSc.Mat().create(comm=V.comm)
    matrix.setSizes(((V.node_set.size, None), (None, local.shape[1])))
    matrix.setType(PETSc.Mat.Type.AIJ)
    rows = V.dof_dset.lgmap.apply(local.row.astype(PETSc.IntType))
    matrix.setPreallocationCOO(rows, local.col.astype(PETSc.IntType))
    matrix.setValuesCOO(local.data, addv=PETSc.InsertMode.ADD_VALUES)
    start, columns, values = matrix.getValuesCSR()
    owned = sparse.csr_array((values, columns, start), (V.node_set.size, local.shape[1]))
    matrix.destroy()
    return owned


class _Cells:
    """The cells that this rank owns, in coordinates whose unit is the pixel; vectorised over cells."""

    def __init__(self, V: WithGeometry, coordinates: np.ndarray) -> None:
        space = V.mesh().coordinates.function_space()
        self.basis = _factors(V.finat_element)
        self.geometry = _factors(space.finat_element)
        self.nodes = _cell_nodes(V)
        self.coordinates = coordinates[_cell_nodes(space)]
        self.simplices = _reference_simplices([factor.cell.get_spatial_dimension() for factor in self.basis])
        dim = self.simplices.shape[-1]
        rule = create_quadrature(ufc_simplex(dim), len(self.basis))
        points = rule.get_points()
        self.rule = np.column_stack([1 - points.sum(axis=1), points]), rule.get_weights()

    def integrals(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield, for chunks of pieces, (nodes, centre, integrals of the basis functions).

        Their shapes are (pieces, basis), (pieces, dim) and (pieces, basis).
        """
        dim = self.simplices.shape[-1]
        corners = self.simplices.reshape(-1, dim)
        table = _tabulate(self.geometry, corners)
        pixels = math.prod(np.ceil(np.ptp(self.coordinates, axis=1).max(axis=0, initial=1))) + 1
        chunk = max(1, int(_CHUNK / pixels / len(self.simplices)))
        for start in range(0, len(self.nodes), chunk):
            coordinates = self.coordinates[start : start + chunk]
            position = np.einsum("cnx,nq->cqx", coordinates, table)
            reference = np.broadcast_to(corners, position.shape)
            # Reference and physical coordinates of the corners, side by side: a cut interpolates both.
            pieces = np.concatenate([position, reference], axis=-1).reshape(-1, dim + 1, 2 * dim)
            cell = np.repeat(np.arange(len(coordinates)), len(self.simplices))
            pieces, cell = _cut(pieces, cell, dim)
            yield self.nodes[start + cell], pieces[..., :dim].mean(axis=1), self._integrate(pieces)

    def _integrate(self, pieces: np.ndarray) -> np.ndarray:
        """Return the integrals (pieces, basis) of the basis functions of each piece's cell over the piece."""
        barycentric, weights = self.rule
        dim = pieces.shape[-1] // 2
        points = np.einsum("qv,pvx->pqx", barycentric, pieces[..., dim:]).reshape(-1, dim)
        values = _tabulate(self.basis, points).reshape(-1, len(pieces), len(weights))
        edges = pieces[:, 1:, :dim] - pieces[:, :1, :dim]
        return (values @ weights).T * np.abs(np.linalg.det(edges))[:, None]


def _cut(pieces: np.ndarray, cell: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Bisect simplices (p, dim + 1, 2 dim) until none crosses an integer in its first ``dim`` coordinates.

    The edge from the lowest to the highest corner is cut at the integer nearest to its middle; each half
    of the edge makes one simplex with the other corners.
    """
    for axis in range(dim):
        done = []
        while len(pieces):
            height = pieces[..., axis]
            low, high = height.min(axis=1), height.max(axis=1)
            first, last = np.floor(low + _TOLERANCE) + 1, np.ceil(high - _TOLERANCE) - 1
            crosses = first <= last
            done.append((pieces[~crosses], cell[~crosses]))
            pieces, cell, height = pieces[crosses], cell[crosses], height[crosses]
            level = np.clip(np.rint((low + high) / 2), first, last)[crosses]
            each = np.arange(len(pieces))
            bottom, top = height.argmin(axis=1), height.argmax(axis=1)
            start, end = pieces[each, bottom], pieces[each, top]
            ratio = (level - start[:, axis]) / (end[:, axis] - start[:, axis])
            point = start + ratio[:, None] * (end - start)
            point[:, axis] = level
            pieces = np.concatenate([pieces, pieces])
            pieces[each, bottom], pieces[len(each) + each, top] = point, point
            cell = np.concatenate([cell, cell])
        pieces, cell = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return pieces, cell


def _cell_nodes(V: WithGeometry) -> np.ndarray:
    """Return the local node numbers of the cells that this rank owns, layers of an extruded mesh included."""
    mesh = V.mesh()
    node_map = V.cell_node_map()
    nodes = node_map.values[: mesh.cell_set.size]
    if not mesh.extruded:
        return nodes
    layers = np.arange(mesh.layers - 1)[None, :, None]
    shift = node_map.offset * layers
    if node_map.offset_quotient is not None:
        # Periodic in the extruded direction: the last layer's upper nodes are the first layer's lower ones.
        wrapped = node_map.offset * ((layers + node_map.offset_quotient) % (mesh.layers - 1))
        shift = wrapped - node_map.offset * node_map.offset_quotient
    return (nodes[:, None, :] + shift).reshape(-1, nodes.shape[1])


def _factors(element: Any) -> tuple[Any, ...]:
    """Return the FInAT elements on simplices whose product is the element: two intervals for a square."""
    element = getattr(element, "product", element)
    if not hasattr(element, "factors"):
        return (element,)
    return tuple(itertools.chain.from_iterable(map(_factors, element.factors)))


def _tabulate(factors: tuple[Any, ...], points: np.ndarray) -> np.ndarray:
    """Return the basis functions (n, q) of a product of elements at points (q, dim)."""
    table, start = np.ones((1, len(points))), 0
    for factor in factors:
        stop = start + factor.cell.get_spatial_dimension()
        values = factor.fiat_equivalent.tabulate(0, points[:, start:stop])[(0,) * (stop - start)]
        table = (table[:, None] * values).reshape(-1, len(points))
        start = stop
    return table


def _reference_simplices(factors: Sequence[int]) -> np.ndarray:
    """Return the corners (simplices, dim + 1, dim) of simplices that make up a reference cell.

    The cell is the product of a simplex of dimension ``factors[0]`` and of intervals; each product with an
    interval is divided by staircases (Kuhn's triangulation in the case of a cube).
    """
    simplices = np.vstack([np.zeros((1, factors[0])), np.eye(factors[0])])[None]
    for _ in factors[1:]:
        low, high = (np.pad(simplices, ((0, 0), (0, 0), (0, 1)), constant_values=end) for end in (0, 1))
        steps = range(simplices.shape[1])
        simplices = np.concatenate([np.hstack([low[:, : k + 1], high[:, k:]]) for k in steps])
    return simplices
