"""The hierarchy of spheres, and transfer between the levels of surfaces: what it keeps, its order, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    CircleManifoldMesh,
    CubedSphereMesh,
    Function,
    FunctionSpace,
    IcosahedralSphereMesh,
    Mesh,
    MeshHierarchy,
    OctahedralSphereMesh,
)
from firedrake.mg.utils import get_level
from support.ranks import assert_equal, in_order_of_place
from support.surfaces import harmonic, places, smooth, spaces_on_spheres

from ctrlnet import low_order_operators
from ctrlnet.operators import Averaging, FullWeighting, Injection, Linear, NestingError, PiecewiseConstant
from ctrlnet.operators import sphere_hierarchy as spheres
from ctrlnet.operators.hierarchy import operators_by_level

SURFACES = {
    "icosphere": lambda: spheres(2.0, 2),
    "projected after each refinement": lambda: MeshHierarchy(IcosahedralSphereMesh(2.0, 0), 2),
    "from level 1": lambda: MeshHierarchy(IcosahedralSphereMesh(2.0, 1), 2),
    "octahedron": lambda: MeshHierarchy(OctahedralSphereMesh(2.0, 1), 2),
    "cubed sphere": lambda: MeshHierarchy(CubedSphereMesh(2.0, 1), 2),
    "circle": lambda: MeshHierarchy(CircleManifoldMesh(6), 2),
}


def applied(matrix, source, target):
    out = Function(target)
    with source.dat.vec_ro as x, out.dat.vec_wo as y:
        matrix.mult(x, y)
    return out


def test_levels_are_icospheres_of_one_radius():
    """Level k has the nodes of IcosahedralSphereMesh(R, k), all on the sphere, and they hold those of level k - 1."""
    hierarchy = spheres(3.0, 3)
    assert len(hierarchy) == 4
    before = None
    for k, mesh in enumerate(hierarchy):
        assert get_level(mesh) == (hierarchy, k)
        x, y = (places(FunctionSpace(m, "CG", 1)) for m in (mesh, IcosahedralSphereMesh(3.0, k)))
        assert x.shape == (10 * 4**k + 2, 3)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 3.0, rtol=1e-14)
        np.testing.assert_allclose(*(a[np.lexsort(np.rint(a * 1e6).T)] for a in (x, y)), atol=1e-13)
        mine = {tuple(p) for p in np.rint(x * 1e6)}
        assert before is None or before <= mine
        before = mine


@pytest.mark.parametrize("name", SURFACES)
def test_prolongation_keeps_constants_and_restriction_the_integral(name):
    """Over one level and over two; weights are those of vertices, midpoints of edges and of cells, none negative."""
    meshes = SURFACES[name]()
    V = [FunctionSpace(m, "CG", 1) for m in meshes]
    D = [low_order_operators(W) for W in V]
    for coarse, fine in ((0, 1), (1, 2), (0, 2)):
        P, R = (t.matrix(V[coarse], V[fine]) for t in (Linear(), FullWeighting()))
        values = P.getValuesCSR()[2]
        assert set(np.unique(values)) <= set(np.arange(1, 17) / 16)
        if coarse + 1 == fine:
            expected = {0.25, 0.5, 1.0} if "cubed" in name else {0.5, 1.0}
            assert set(np.unique(values)) == expected
        one = Function(V[coarse]).assign(1.0)
        assert np.abs(applied(P, one, V[fine]).dat.data_ro - 1.0).max() < 1e-15
        y = smooth(V[fine])
        coarse_y = applied(R, y, V[coarse])
        total = D[fine].mass @ y.dat.data_ro
        assert abs(D[coarse].mass @ coarse_y.dat.data_ro - total) < 1e-13 * D[fine].mass @ np.abs(y.dat.data_ro)
        # The adjoint in the lumped products: (R y, w)_H = (y, P w)_h.
        w = smooth(V[coarse], 1.0)
        left = D[coarse].mass @ (coarse_y.dat.data_ro * w.dat.data_ro)
        right = D[fine].mass @ (y.dat.data_ro * applied(P, w, V[fine]).dat.data_ro)
        assert abs(left - right) < 1e-13 * np.abs(D[fine].mass).sum()
        mean, groups = (t.matrix(V[coarse], V[fine]) for t in (Averaging(), PiecewiseConstant()))
        for matrix, source, target in ((mean, fine, coarse), (groups, coarse, fine)):
            constant = applied(matrix, Function(V[source]).assign(1.0), V[target])
            assert np.abs(constant.dat.data_ro - 1.0).max() < 1e-14
        taken = applied(Injection().matrix(V[coarse], V[fine]), y, V[coarse])
        np.testing.assert_allclose(taken.dat.data_ro, smooth(V[coarse]).dat.data_ro, atol=1e-13)


@pytest.mark.parametrize("degree", [1, 4])
def test_the_order_of_prolongation_and_restriction(degree):
    """P of a spherical harmonic's nodal values is that of the fine level up to h^2, in the lumped L2 norm.

    R is so in the mean alone: against a smooth w it is (y, P w)_h for (y, w)_H. By itself it is of first order along
    the 30 edges of the icosahedron, where the size of cells has a kink, and so of order 3/2.
    """
    V = spaces_on_spheres(6, radius=1.0)[2:]
    errors = []
    for coarse, fine in zip(V, V[1:], strict=False):
        M, Y, w = [], [], []
        for W in (coarse, fine):
            M.append(low_order_operators(W).mass)
            Y.append(Function(W))
            Y[-1].dat.data[:] = harmonic(degree, places(W))[0]
            w.append(np.exp(places(W)[:, 0] - 0.5 * places(W)[:, 2]))
        up = applied(Linear().matrix(coarse, fine), Y[0], fine).dat.data_ro - Y[1].dat.data_ro
        restricted = applied(FullWeighting().matrix(coarse, fine), Y[1], coarse).dat.data_ro
        mean = M[0] @ (restricted * w[0]) - M[1] @ (Y[1].dat.data_ro * w[1])
        errors.append([np.sqrt(M[1] @ up**2), abs(mean), np.sqrt(M[0] @ (restricted - Y[0].dat.data_ro) ** 2)])
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(orders[:, :2] - 2) < 0.2).all() and orders[:, 2].min() > 1.4, orders


def test_a_restricted_constant_changes_with_the_area():
    """Facets of a coarse level cut off more of the sphere: R 1 differs from 1 by 8% on 42 nodes, 1.2% on 2,562."""
    V = spaces_on_spheres(5)
    most = []
    for coarse, fine in zip(V[1:], V[2:], strict=False):
        one = applied(FullWeighting().matrix(coarse, fine), Function(fine).assign(1.0), coarse)
        most.append(np.abs(one.dat.data_ro - 1.0).max())
    np.testing.assert_allclose([most[0], most[-1]], [0.078, 0.012], rtol=0.05)


def test_coarser_operators_are_those_of_the_hierarchy_of_the_very_mesh():
    """A mesh of other coordinates on a level's cells has no coarser levels: they would be in another place."""
    V = spaces_on_spheres(2)[2]
    assert [o.nodes for o in operators_by_level(low_order_operators(V))] == [162, 42, 12]
    copy = FunctionSpace(Mesh(V.mesh().coordinates.copy(deepcopy=True)), "CG", 1)
    assert [o.nodes for o in operators_by_level(low_order_operators(copy))] == [162]


def test_meshes_of_two_hierarchies_are_not_levels_of_one():
    V, W = spaces_on_spheres(2), spaces_on_spheres(1)
    with pytest.raises(NestingError, match=r"does not cover .*levels of one hierarchy, such as sphere_hierarchy"):
        Linear().matrix(W[1], V[2])
    square = FunctionSpace(CubedSphereMesh(2.0, 1), "CG", 1)
    with pytest.raises(NestingError, match="does not cover"):
        Linear().matrix(square, V[1])


def test_a_level_that_was_moved_alone_is_refused():
    V = spaces_on_spheres(2)
    V[2].mesh().coordinates.dat.data[:] = V[2].mesh().coordinates.dat.data_ro[:, [1, 2, 0]] * [1.0, -1.0, 1.0]
    with pytest.raises(ValueError, match="are not where refining .* Move every level .* alike before its first use"):
        Linear().matrix(V[1], V[2])


@pytest.mark.parametrize("arguments", [(0.0, 1), (-1.0, 1), (np.inf, 1), (np.nan, 1), (1.0, -1)])
def test_a_sphere_needs_a_radius_and_levels(arguments):
    with pytest.raises(ValueError, match="positive radius and a number of refinements, received radius="):
        spheres(*arguments)


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_transfers_on_any_number_of_ranks():
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        V = spaces_on_spheres(2, comm=comm)
        numbers = {}
        for name, transfer in (("P", Linear()), ("constant", PiecewiseConstant()), ("R", FullWeighting()),
                               ("injection", Injection()), ("mean", Averaging())):
            for k in (0, 1):
                source, target = (V[k], V[2]) if name in ("P", "constant") else (V[2], V[k])
                matrix = transfer.matrix(V[k], V[2])
                numbers[f"{name} {k}"] = in_order_of_place(applied(matrix, smooth(source), target), target)
        found.append(numbers)
    assert_equal(*found)
