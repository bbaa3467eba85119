"""Pixels to nodal values, against hand computations, exact 1D integrals, conservation and rank counts."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    BoxMesh,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IntervalMesh,
    Mesh,
    PeriodicIntervalMesh,
    PeriodicRectangleMesh,
    RectangleMesh,
    SpatialCoordinate,
    TestFunction,
    UnitIcosahedralSphereMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    assemble,
    dx,
    exp,
    pi,
    sin,
)
from mpi4py import MPI
from scipy.spatial import KDTree

from ctrlnet.fields import PixelProjection, average_pixels

SQUARE = Path(__file__).parents[2] / "meshes" / "square.msh"
RNG_SEED = 3


def space(mesh):
    return FunctionSpace(mesh, "CG", 1)


def node_coordinates(V):
    """Coordinates (owned nodes, dim) of a CG1 space on a mesh that is not periodic."""
    mesh = V.mesh()
    X = Function(VectorFunctionSpace(mesh, V.ufl_element())).interpolate(SpatialCoordinate(mesh))
    return X.dat.data_ro.reshape(-1, mesh.geometric_dimension)


def images_for(shape, n=3):
    return np.random.default_rng(RNG_SEED).integers(0, 256, (n, *shape), dtype=np.uint8)


def pixel_centres(shape, lengths):
    """Coordinates (pixels, dim) of the centres, by the documented orientation."""
    axes = [(np.arange(p) + 0.5) * length / p for p, length in zip(shape[::-1], lengths, strict=True)]
    if len(axes) > 1:
        axes[1] = axes[1][::-1]
    grids = np.meshgrid(*axes[::-1], indexing="ij")
    return np.stack([grid.ravel() for grid in grids[::-1]], axis=-1)


def mass(V):
    return assemble(TestFunction(V) * dx).dat.data_ro


def window_means(images):
    """By hand: mean of the 2x2 pixels around each node, of fewer at the edge; node row 0 at the top."""
    padded = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge")
    return (padded[:, 1:, 1:] + padded[:, 1:, :-1] + padded[:, :-1, 1:] + padded[:, :-1, :-1]) / 4


def at_nodes(grid, coordinates, spacing):
    """Pick (n, rows, columns) nodal values at coordinates; rows top down."""
    column, row = np.rint(coordinates / spacing).astype(int).T
    return grid[:, grid.shape[1] - 1 - row, column].T


@pytest.mark.parametrize("cells", [28, 7])
def test_one_pixel_a_cell_is_the_mean_of_its_neighbours(cells):
    V = space(RectangleMesh(cells, cells, 28, 28, quadrilateral=True))
    images = images_for((28, 28)) if cells == 28 else average_pixels(images_for((28, 28)), 4)
    expected = at_nodes(window_means(images), node_coordinates(V), 28 / cells)
    np.testing.assert_allclose(PixelProjection(V, (cells, cells))(images), expected, rtol=1e-13)


def hat_weights(cells, pixels):
    """Exact integrals (cells + 1, pixels) of the hat functions on [0, 1] over pixels, normalised."""
    centre = np.arange(cells + 1)[:, None]
    edges = np.linspace(0, cells, pixels + 1)
    # Antiderivative of the hat of width 1 around 0.
    distance = np.clip(np.clip(edges, 0, cells) - centre, -1, 1)
    antiderivative = distance - np.sign(distance) * distance**2 / 2
    weights = np.diff(antiderivative, axis=1)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("make", "cells", "shape"),
    [
        (lambda: IntervalMesh(7, 28), (7,), (28,)),
        (lambda: IntervalMesh(11, 3), (11,), (28,)),
        (lambda: RectangleMesh(7, 7, 28, 28, quadrilateral=True), (7, 7), (28, 28)),
        (lambda: RectangleMesh(56, 28, 28, 28, quadrilateral=True), (56, 28), (28, 28)),
        (lambda: RectangleMesh(11, 13, 5, 2, quadrilateral=True), (11, 13), (20, 28)),
        (lambda: RectangleMesh(3, 2, 4, 4, originX=1, originY=2, quadrilateral=True), (3, 2), (4, 4)),
        (lambda: BoxMesh(2, 4, 3, 1, 1, 1, hexahedral=True), (2, 4, 3), (6, 4, 5)),
        (lambda: ExtrudedMesh(UnitSquareMesh(2, 4, quadrilateral=True), 3), (2, 4, 3), (6, 4, 5)),
    ],
)
def test_tensor_product_meshes_have_exact_weights(make, cells, shape):
    V = space(make())
    coordinates = node_coordinates(V)
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    index = np.rint((coordinates - low) / (high - low) * cells).astype(int)
    weights = [hat_weights(c, p) for c, p in zip(cells, shape[::-1], strict=True)]
    if len(shape) > 1:
        weights[1] = weights[1][:, ::-1]
    # Image axes are those of space in reverse.
    rows = [w[i] for w, i in zip(weights, index.T, strict=True)][::-1]
    expected = reduce(lambda a, b: (a[:, :, None] * b[:, None]).reshape(len(a), -1), rows)
    np.testing.assert_allclose(PixelProjection(V, shape).matrix.toarray(), expected, atol=1e-13)


SIMPLICIAL = {
    "left": (lambda: RectangleMesh(14, 28, 28, 28, diagonal="left"), (14, 14)),
    "crossed": (lambda: RectangleMesh(14, 14, 28, 28, diagonal="crossed"), (7, 14)),
    "tetrahedra": (lambda: BoxMesh(4, 2, 6, 4, 4, 4), (3, 2, 4)),
    "prisms": (lambda: ExtrudedMesh(UnitSquareMesh(4, 4), 2), (2, 4, 2)),
}


@pytest.mark.parametrize("name", SIMPLICIAL)
def test_cells_inside_pixels_agree_with_assembly(name):
    """Where no pixel edge cuts a cell, the image is a DG0 function and Firedrake's integral is exact."""
    make, shape = SIMPLICIAL[name]
    V = space(make())
    mesh = V.mesh()
    image = images_for(shape, 1)
    centres = Function(VectorFunctionSpace(mesh, "DG", 0)).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    lengths = node_coordinates(V).max(axis=0)
    in_pixels = np.array(shape[::-1]) / lengths
    pixel = KDTree(pixel_centres(shape, lengths) * in_pixels).query(centres * in_pixels, p=np.inf)[1]
    as_function = Function(FunctionSpace(mesh, "DG", 0))
    as_function.dat.data[:] = image.reshape(-1)[pixel]
    expected = assemble(as_function * TestFunction(V) * dx).dat.data_ro / mass(V)
    np.testing.assert_allclose(PixelProjection(V, shape)(image)[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Mesh(str(SQUARE)), (28, 28)),
        (lambda: Mesh(str(SQUARE)), (7, 14)),
        (lambda: RectangleMesh(9, 5, 28, 28, diagonal="crossed"), (28, 28)),
        (lambda: BoxMesh(3, 2, 4, 5, 6, 7), (5, 3, 7)),
        (lambda: ExtrudedMesh(RectangleMesh(3, 4, 2, 2), 3, 1), (5, 4, 7)),
    ],
)
def test_moments_of_every_pixel(make, shape):
    """Basis functions sum to 1 and to x: each pixel's lumped masses sum to its volume and first moment."""
    V = space(make())
    coordinates = node_coordinates(V)
    lengths = coordinates.max(axis=0)
    weighted = mass(V) * PixelProjection(V, shape).matrix.T.toarray()
    volume = np.prod(lengths) / np.prod(shape)
    np.testing.assert_allclose(weighted.sum(axis=1), volume, rtol=1e-11)
    np.testing.assert_allclose(weighted @ coordinates / volume, pixel_centres(shape, lengths), atol=1e-10)


def smooth(x, y, sine, exp):
    return sine(3 * x + 1) * exp(y)


@pytest.mark.parametrize("kind", ["triangles", "warped quadrilaterals"])
def test_second_order_on_other_cells(kind):
    """Against the lumped projection of the function that the pixels sample, finer and finer meshes."""
    pixels = 256
    x, y = pixel_centres((pixels, pixels), (1, 1)).T
    image = smooth(x, y, np.sin, np.exp).reshape(1, pixels, pixels)
    errors, cells = [], np.array([4, 8, 16])
    for n in cells:
        mesh = UnitSquareMesh(n, n, quadrilateral=kind != "triangles")
        X = SpatialCoordinate(mesh)
        if kind != "triangles":
            bump = sin(pi * X[0]) * sin(pi * X[1])
            warp = as_vector([1 - X[1], X[0]])
            mesh.coordinates.interpolate(X + 0.1 * bump * warp)
        V = space(mesh)
        projected = PixelProjection(V, (pixels, pixels))(image)[:, 0]
        exact = assemble(smooth(*SpatialCoordinate(mesh), sin, exp) * TestFunction(V) * dx(degree=8))
        errors.append(np.sqrt(np.mean((projected - exact.dat.data_ro / mass(V)) ** 2)))
    if kind == "triangles":
        bound = cells / pixels**2
        assert (errors < bound).all(), f"in affine cells only the pixels err, by size^2 / h: {errors}"
    else:
        order = np.log2(np.array(errors[:-1]) / errors[1:])
        assert order.min() > 1.7, f"second order in the size of the cell, measured {order}"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: IntervalMesh(5, 1), (9,)),
        (lambda: PeriodicIntervalMesh(7, 28), (28,)),
        (lambda: Mesh(str(SQUARE)), (28, 28)),
        (lambda: PeriodicRectangleMesh(7, 5, 28, 28, quadrilateral=True), (28, 28)),
        (lambda: ExtrudedMesh(PeriodicIntervalMesh(7, 28), 5, 4, periodic=True), (10, 28)),
        (lambda: BoxMesh(2, 3, 2, 1, 1, 1), (3, 3, 3)),
    ],
)
def test_constants_are_kept(make, shape):
    projection = PixelProjection(space(make()), shape)
    assert projection.matrix.data.min() > 0
    np.testing.assert_allclose(projection(np.full((2, *shape), 255, np.uint8)), 255, rtol=4e-15)


def test_periodic_nodes_wrap():
    """On a periodic mesh the seam's nodes average across it: circular means of the pixels."""
    V = space(PeriodicRectangleMesh(6, 6, 6, 6, quadrilateral=True))
    image = images_for((6, 6), 1)
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    wrapped = np.mean([np.roll(image[0], shift, axis=(0, 1)) for shift in shifts], axis=0)
    np.testing.assert_allclose(np.sort(PixelProjection(V, (6, 6))(image)[:, 0]), np.sort(wrapped.ravel()))


def test_orientation():
    """The top left pixel is at (0, 28); in 3D the first axis is z and the rows are y downwards."""
    V = space(RectangleMesh(28, 28, 28, 28, quadrilateral=True))
    picture = np.zeros((1, 28, 28), np.uint8)
    picture[0, 0, 0] = 200
    values = PixelProjection(V, (28, 28))(picture)[:, 0]
    np.testing.assert_array_equal(node_coordinates(V)[values.argmax()], [0, 28])
    V = space(BoxMesh(2, 2, 2, 2, 2, 2, hexahedral=True))
    picture = np.zeros((1, 2, 2, 2))
    picture[0, 1, 0, 0] = 1
    values = PixelProjection(V, (2, 2, 2))(picture)[:, 0]
    np.testing.assert_array_equal(node_coordinates(V)[values.argmax()], [0, 2, 2])
    V = space(IntervalMesh(2, 2))
    values = PixelProjection(V, (2,))(np.array([[1.0, 0.0]]))[:, 0]
    np.testing.assert_array_equal(node_coordinates(V)[values.argmax()], [0])


def test_floats_and_integers_agree():
    projection = PixelProjection(space(RectangleMesh(4, 4, 28, 28)), (28, 28))
    images = images_for((28, 28))
    values = projection(images)
    assert values.dtype == float and values.shape == (25, 3)
    np.testing.assert_allclose(projection(images / 255), values / 255, rtol=1e-14)


@pytest.mark.parallel(nprocs=[1, 2, 3])
def test_values_do_not_depend_on_the_rank_count():
    """Every rank solves the serial problem too and compares its own nodes with it."""
    for make, shape in (
        (lambda comm: IntervalMesh(10, 28, comm=comm), (28,)),
        (lambda comm: RectangleMesh(7, 7, 28, 28, quadrilateral=True, comm=comm), (28, 28)),
        (lambda comm: Mesh(str(SQUARE), comm=comm), (28, 28)),
        (lambda comm: BoxMesh(3, 3, 3, 1, 1, 1, comm=comm), (4, 4, 4)),
        (lambda comm: ExtrudedMesh(UnitSquareMesh(3, 3, comm=comm), 2), (4, 3, 5)),
        # Two cells: on three ranks one of them owns none.
        (lambda comm: RectangleMesh(2, 1, 4, 4, quadrilateral=True, comm=comm), (4, 4)),
    ):
        images = images_for(shape)
        serial, V = space(make(COMM_SELF)), space(make(COMM_WORLD))
        expected = PixelProjection(serial, shape)(images)
        values = PixelProjection(V, shape)(images)
        distance, match = KDTree(node_coordinates(serial)).query(node_coordinates(V))
        error = np.abs(values - expected[match]).max(initial=0) / 255
        # Collective figures: a rank that failed alone would leave the others waiting.
        nodes, distance, error = (
            V.comm.allreduce(len(values)),
            V.comm.allreduce(distance.max(initial=0), op=MPI.MAX),
            V.comm.allreduce(error, op=MPI.MAX),
        )
        assert nodes == len(expected) and distance < 1e-12
        assert error < 1e-13, f"{V.comm.size} ranks differ from one by {error} of full scale"


@pytest.mark.parametrize("shape", [(12,), (8, 12), (4, 8, 12)])
def test_average_pixels(shape):
    images = images_for(shape, 2)
    averaged = average_pixels(images, 4)
    assert averaged.dtype == float and averaged.shape == (2, *(p // 4 for p in shape))
    for corner, block in ((0, slice(4)), (-1, slice(-4, None))):
        expected = images[(1, *[block] * len(shape))].mean()
        np.testing.assert_allclose(averaged[(1, *[corner] * len(shape))], expected, rtol=1e-15)
    np.testing.assert_array_equal(average_pixels(images, 1), images)
    np.testing.assert_allclose(average_pixels(average_pixels(images, 2), 2), averaged, rtol=1e-15)


NAN = np.full((2, 4, 4), np.nan)
NAN[0] = 0
BAD_IMAGES = {
    "shape": (np.zeros((2, 5, 4)), r"received \(2, 5, 4\), expected \(n, 4, 4\)"),
    "one image": (np.zeros((4, 4)), r"image\[None\]"),
    "empty": (np.zeros((0, 4, 4)), "empty batch"),
    "NaN": (NAN, r"received 16 NaN or infinite pixels, the first at index \(1, 0, 0\)"),
    "inf": (np.full((1, 4, 4), np.inf), "not finite"),
    "complex": (np.zeros((1, 4, 4), complex), "received complex128"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(name):
    images, message = BAD_IMAGES[name]
    projection = PixelProjection(space(UnitSquareMesh(2, 2)), (4, 4))
    with pytest.raises(ValueError, match=message):
        projection(images)


@pytest.mark.parametrize(
    ("images", "factor", "message"),
    [
        (np.zeros((1, 28, 28)), 3, "received factor = 3"),
        (np.zeros((1, 28, 28)), 0, "received factor = 0"),
        (np.zeros((1, 28, 28)), 2.0, "received factor = 2.0"),
        (np.zeros((0, 28, 28)), 2, "empty batch"),
        (np.zeros(28), 2, "wrong shape"),
        (NAN, 2, "not finite"),
    ],
)
def test_bad_averages(images, factor, message):
    with pytest.raises(ValueError, match=message):
        average_pixels(images, factor)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: FunctionSpace(m, "CG", 2), "degree 1"),
        (lambda m: FunctionSpace(m, "DG", 1), "degree 1"),
        (lambda m: FunctionSpace(m, "CR", 1), "degree 1"),
        (lambda m: FunctionSpace(m, "R", 0), "degree 1"),
        (lambda m: VectorFunctionSpace(m, "CG", 1), "scalar"),
        (lambda m: FunctionSpace(m, "CG", 1) * FunctionSpace(m, "CG", 1), "scalar"),
    ],
)
def test_bad_spaces(make, message):
    with pytest.raises(ValueError, match=message):
        PixelProjection(make(UnitSquareMesh(2, 2)), (4, 4))


def test_surfaces_are_refused():
    with pytest.raises(ValueError, match="topological dimension 2 in 3 dimensions"):
        PixelProjection(space(UnitIcosahedralSphereMesh(0)), (4, 4, 4))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (4, 0), (4, 2.5), 4, ()])
def test_bad_pixel_shapes(shape):
    with pytest.raises(ValueError, match="mesh of dimension 2"):
        PixelProjection(space(UnitSquareMesh(2, 2)), shape)
