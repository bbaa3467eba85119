"""The meshes of the repository, as Firedrake reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from firedrake import (
    CellDiameter,
    Constant,
    Function,
    FunctionSpace,
    Mesh,
    SpatialCoordinate,
    assemble,
    ds,
    dx,
)

MESHES = Path(__file__).parents[2] / "meshes"


@pytest.fixture(scope="module")
def square():
    return Mesh(str(MESHES / "square.msh"))


def test_square_covers_the_square(square):
    assert np.isclose(assemble(Constant(1.0) * dx(domain=square)), 784, rtol=1e-12)
    coordinates = square.coordinates.dat.data_ro
    np.testing.assert_array_equal(coordinates.min(axis=0), [0, 0])
    np.testing.assert_array_equal(coordinates.max(axis=0), [28, 28])


def test_square_is_about_as_fine_as_the_pixels(square):
    assert square.ufl_cell().cellname == "triangle"
    assert 900 < FunctionSpace(square, "CG", 1).dim() < 1100
    diameter = Function(FunctionSpace(square, "DG", 0)).interpolate(CellDiameter(square)).dat.data_ro
    assert 0.8 < diameter.min() and diameter.max() < 1.5


@pytest.mark.parametrize(("tag", "axis", "place"), [(1, 0, 0), (2, 0, 28), (3, 1, 0), (4, 1, 28)])
def test_square_boundary_tags(square, tag, axis, place):
    """The tags of RectangleMesh: left, right, bottom, top."""
    assert sorted(square.exterior_facets.unique_markers) == [1, 2, 3, 4]
    length = assemble(Constant(1.0) * ds(tag, domain=square))
    distance = assemble(abs(SpatialCoordinate(square)[axis] - place) * ds(tag, domain=square))
    assert np.isclose(length, 28, rtol=1e-12)
    assert np.isclose(distance, 0, atol=1e-12)


@pytest.mark.parametrize("path", sorted(MESHES.glob("*.msh")), ids=lambda path: path.name)
def test_every_mesh_has_its_geometry_beside_it(path):
    assert path.with_suffix(".geo").is_file()
    assert path.name in (MESHES / "README.md").read_text()
