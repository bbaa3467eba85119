"""Refinement of marked cells and of all: the next level of a hierarchy, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    BoxMesh,
    Constant,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IntervalMesh,
    MeshHierarchy,
    RectangleMesh,
    SpatialCoordinate,
    assemble,
    conditional,
    dx,
    lt,
)
from firedrake.mg.utils import get_level
from support.ranks import on_ranks

import ctrlnet as cn
from ctrlnet.operators import sphere_hierarchy
from ctrlnet.operators.hierarchy import operators_by_level
from ctrlnet.operators.intergrid import Linear, check_nested
from ctrlnet.operators.refinement import refined

MESHES = {
    "interval": lambda: IntervalMesh(8, 3.0), "triangles": lambda: RectangleMesh(4, 4, 3.0, 3.0),
    "tetrahedra": lambda: BoxMesh(2, 2, 2, 3.0, 3.0, 3.0), "sphere": lambda: sphere_hierarchy(1.0, 1)[-1]}


def marks_of(mesh):
    """The cells whose midpoint is near the origin, or on a sphere near a pole."""
    x = SpatialCoordinate(mesh)
    where = lt(x[0], 0.8) if mesh.geometric_dimension < 3 or mesh.topological_dimension == 3 else lt(x[2], -0.3)
    return Function(FunctionSpace(mesh, "DG", 0)).interpolate(conditional(where, 1.0, 0.0)).dat.data_ro > 0.5


@on_ranks
def test_marked_cells():
    """Twice over: only near the marks, nested, every level in one hierarchy with operators and prolongation."""
    counts = {"interval": (9, 11, 15), "triangles": (25, 46, 117), "sphere": (42, None, None)}
    for name, make in MESHES.items():
        levels = [make()]
        for _ in range(2):
            levels.append(refined(levels[-1], marks_of(levels[-1])))
        spaces = [FunctionSpace(mesh, "CG", 1) for mesh in levels]
        sizes = [V.dim() for V in spaces]
        assert sizes[0] < sizes[1] < sizes[2]
        for expected, found in zip(counts.get(name, ()), sizes, strict=False):
            assert expected in (None, found), (name, sizes)
        uniform = FunctionSpace(refined(levels[0]), "CG", 1).dim()
        assert sizes[1] < uniform
        for coarse, fine in zip(spaces, spaces[1:], strict=False):
            one = Linear().matrix(coarse, fine)
            ones, image = one.createVecs()
            ones.set(1.0)
            one.mult(ones, image)
            assert np.allclose(image.array_r, 1.0, rtol=0, atol=1e-12)
            if name != "sphere":
                check_nested(coarse, fine)
                areas = [assemble(Constant(1.0) * dx(domain=V.mesh())) for V in (coarse, fine)]
                assert areas[0] == pytest.approx(areas[1], rel=1e-13)
        last = refined(levels[0], marks_of(levels[0]))  # another branch, which is a hierarchy of two
        hierarchy, number = get_level(last)
        assert number == len(hierarchy) - 1 and hierarchy[int(number) - 1] is levels[0]
        below = operators_by_level(cn.low_order_operators(FunctionSpace(last, "CG", 1)))
        assert [D.mesh for D in below] == [hierarchy[k] for k in range(len(hierarchy) - 1, -1, -1)]


@on_ranks
def test_all_cells():
    for make in (*MESHES.values(), lambda: RectangleMesh(3, 3, 1.0, 1.0, quadrilateral=True)):
        base = make()
        hierarchy, number = get_level(base)
        below = 1 if hierarchy is None else int(number) + 1
        fine = refined(refined(base))
        hierarchy, number = get_level(fine)
        assert len(hierarchy) == below + 2 and number == below + 1
        cells = [mesh.comm.allreduce(mesh.cell_set.size) for mesh in list(hierarchy)[-3:]]
        factor = 2**fine.topological_dimension
        assert cells[1:] == [factor * cells[0], factor**2 * cells[0]]


@on_ranks
def test_a_sphere_stays_round():
    mesh = sphere_hierarchy(2.0, 1)[-1]
    for fine in (refined(mesh), refined(refined(mesh, marks_of(mesh)))):
        radii = np.linalg.norm(fine.coordinates.dat.data_ro, axis=1)
        assert np.allclose(radii, 2.0, rtol=1e-14)


def test_an_own_hierarchy_goes_on():
    levels = MeshHierarchy(RectangleMesh(2, 2, 1.0, 1.0), 2)
    fine = refined(levels[1])
    hierarchy, number = get_level(fine)
    assert number == 2 and list(hierarchy) == [levels[0], levels[1], fine]


def test_what_is_refused():
    mesh = RectangleMesh(2, 2, 1.0, 1.0)
    quads = RectangleMesh(2, 2, 1.0, 1.0, quadrilateral=True)
    with pytest.raises(ValueError, match="quadrilateral, which are refined as a whole"):
        refined(quads, np.ones(4, bool))
    with pytest.raises(ValueError, match="is extruded"):
        refined(ExtrudedMesh(mesh, 2))
    for marks, message in ((np.ones(3, bool), "one for each of the 8"), (np.ones(8), "Marks are boolean"),
                           (np.zeros(8, bool), "No cell is marked")):
        with pytest.raises(ValueError, match=message):
            refined(mesh, marks)
