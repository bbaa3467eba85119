"""Kernels between scales: the two Galerkin routes against each other, dense products, polynomials and the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    BoxMesh,
    ExtrudedMeshHierarchy,
    Function,
    FunctionSpace,
    IntervalMesh,
    Mesh,
    MeshHierarchy,
    PeriodicRectangleMesh,
    RectangleMesh,
    SpatialCoordinate,
    cos,
    exp,
    sin,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

import ctrlnet as cn
from ctrlnet.operators import Averaging, FullWeighting, Injection, Linear, NestingError, PiecewiseConstant
from ctrlnet.operators.stencils import to_coefficients, to_stencil
from ctrlnet.transfer import (
    HilbertSchmidt,
    Moments,
    SingularTransferError,
    galerkin,
    galerkin_prolongation,
    galerkin_stencil_map,
    galerkin_stencils,
    interior_rows,
    prolong_stencils,
    rediscretise,
)

SQUARE = Path(__file__).parents[2] / "meshes" / "square.msh"
# The seed's example, printed with two decimals.
K_FINE = np.array([[-0.89, -2.03, 4.30], [-2.07, 0.0, -2.07], [4.39, -2.03, 1.28]])
K_COARSE = np.array([[-0.48, -0.17, 0.82], [-0.15, -0.80, 0.37], [0.84, 0.40, 0.07]])
RESTRICTIONS = [Injection(), Averaging(), FullWeighting()]
PROLONGATIONS = [PiecewiseConstant(), Linear()]


def stencils_on(mesh):
    return cn.stencil_operators(FunctionSpace(mesh, "CG", 1))


def low_on(mesh):
    return cn.low_order_operators(FunctionSpace(mesh, "CG", 1))


def hierarchy(kind, refinements=1, comm=COMM_WORLD):
    """The coarse mesh has the width 2."""
    if kind == "interval":
        base = IntervalMesh(5, 10.0, comm=comm)
    elif kind == "hexahedron":
        base = BoxMesh(3, 2, 2, 6.0, 4.0, 4.0, hexahedral=True, comm=comm)
    else:
        base = RectangleMesh(4, 3, 8.0, 6.0, quadrilateral=kind == "quadrilateral", comm=comm)
    return MeshHierarchy(base, refinements)


def test_the_seeds_example_by_stencils_forwards_and_back():
    coarse = galerkin_stencils(K_FINE, 2)
    assert np.abs(coarse - K_COARSE).max() < 0.01
    assert np.abs(prolong_stencils(coarse, 2) - K_FINE).max() < 1e-10


def test_the_seeds_example_by_projection_forwards_and_back():
    coarse, fine = (stencils_on(m) for m in hierarchy("quadrilateral"))
    move = galerkin(fine, coarse)
    s_h = to_coefficients(K_FINE, (1.0, 1.0))
    s_H = move.coefficients(s_h)
    K_H = cn.interior_stencil(coarse, s_H)
    assert np.abs(K_H - K_COARSE).max() < 0.01
    assert np.abs(K_H - galerkin_stencils(K_FINE, 2)).max() < 1e-12
    assert max(move.residuals(s_h)[0].values()) < 1e-12
    back = galerkin_prolongation(coarse, fine)
    assert np.abs(to_stencil(back.coefficients(s_H), (1.0, 1.0)) - K_FINE).max() < 1e-10
    assert 1 < move.condition < 50 and move.condition == pytest.approx(back.condition)


@pytest.mark.parametrize("kind", ["interval", "quadrilateral", "hexahedron"])
def test_both_routes_agree_for_every_restriction_and_prolongation(kind):
    """Interior rows of a uniform mesh hold the stencil, so the least squares have no residual."""
    meshes = hierarchy(kind)
    coarse, fine = (stencils_on(m) for m in meshes)
    dim = fine.mesh.geometric_dimension
    pairs = [(r, p) for r in RESTRICTIONS for p in PROLONGATIONS]
    for restriction, prolongation in pairs if dim < 3 else pairs[-1:]:
        stencils = galerkin_stencil_map((1.0,) * dim, restriction, prolongation)
        projected = galerkin(fine, coarse, restriction, prolongation)
        assert np.abs(projected.matrix - stencils.matrix).max() < 1e-12, (restriction, prolongation)
        assert max(projected.residuals(np.eye(3**dim))[0].values()) < 1e-12
        rough = galerkin(fine, coarse, restriction, prolongation, inner_product=HilbertSchmidt())
        assert np.abs(rough.matrix - stencils.matrix).max() < 1e-11, "an exact fit is the same in any inner product"


@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("prolongation", PROLONGATIONS, ids=lambda p: type(p).__name__)
def test_the_stencil_map_against_dense_products_on_a_torus(restriction, prolongation):
    """R K_h P as matrices of a periodic line, built from nothing but the weights."""
    cells, stencil = 12, np.array([0.7, -1.3, 2.1])
    K, R, P = np.zeros((cells, cells)), np.zeros((cells // 2, cells)), np.zeros((cells, cells // 2))
    for node in range(cells):
        for k in (-1, 0, 1):
            K[node, (node + k) % cells] += stencil[k + 1]
    for J in range(cells // 2):
        for offset, weight in restriction.weights.items():
            R[J, (2 * J + offset) % cells] += weight
        for offset, weight in prolongation.weights.items():
            P[(2 * J + offset) % cells, J] += weight
    coarse = galerkin_stencils(stencil, 1, restriction, prolongation)
    expected = np.zeros((cells // 2, cells // 2))
    for J in range(cells // 2):
        for k in (-1, 0, 1):
            expected[J, (J + k) % (cells // 2)] += coarse[k + 1]
    assert np.abs(R @ K @ P - expected).max() < 1e-14
    assert np.abs(R.sum(axis=1) - 1).max() < 1e-15 and np.abs(P.sum(axis=1) - 1).max() < 1e-15


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(0, 2**31))
def test_any_stencil_and_feature_mixing_come_back(dim, seed):
    kernel = np.random.default_rng(seed).standard_normal((3,) * dim + (2, 3))
    coarse = galerkin_stencils(kernel, dim)
    assert np.abs(coarse[..., 1, 2] - galerkin_stencils(kernel[..., 1, 2], dim)).max() < 1e-12
    assert np.abs(prolong_stencils(coarse, dim) - kernel).max() < 1e-10


@pytest.mark.parametrize("kind", ["interval", "quadrilateral", "triangle", "hexahedron"])
def test_constants_are_kept_exactly(kind):
    """R P 1 = 1, and every operator but the identity sends constants to zero, so K_H 1 = s_0 = K_h 1."""
    coarse, fine = ((low_on if kind == "triangle" else stencils_on)(m) for m in hierarchy(kind))
    for restriction in RESTRICTIONS:
        for prolongation in PROLONGATIONS:
            R, P = (t.matrix(coarse.space, fine.space) for t in (restriction, prolongation))
            one, result = P.createVecs()
            one.set(1.0)
            product = R.matMult(P)
            product.mult(one, result := one.duplicate())
            assert np.abs(result.array - 1).max() < 1e-14
            move = galerkin(fine, coarse, restriction, prolongation)
            assert np.abs(move.matrix[0] - np.eye(len(fine))[0]).max() < 1e-12


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_galerkin_is_rediscretisation_up_to_second_order(dim):
    """The coefficients differ by O(h^2), so the operators of a smooth function do: observed orders 2."""
    s = np.random.default_rng(dim).standard_normal(3**dim)
    widths = 0.5 ** np.arange(2, 6)
    change = [np.abs(galerkin_stencil_map((h,) * dim).coefficients(s) - s).max() for h in widths]
    orders = np.log2(np.array(change[:-1]) / change[1:])
    assert np.abs(orders - 2).max() < 0.05, orders


@pytest.mark.parametrize("kind", ["quadrilateral", "triangle"])
def test_the_order_on_a_smooth_function(kind):
    """R K_h P u and K_H u with the same coefficients, on nested meshes: order 2 at interior nodes."""
    errors = []
    for cells in (8, 16, 32):
        meshes = MeshHierarchy(RectangleMesh(cells, cells, 3.0, 2.0, quadrilateral=kind == "quadrilateral"), 1)
        coarse, fine = (low_on(m) for m in meshes)
        move = galerkin(fine, coarse)
        s = np.array([1.0, 0.5, -0.7, 0.3])
        x, y = SpatialCoordinate(coarse.mesh)
        u = Function(coarse.space).interpolate(sin(x) * cos(2 * y) + exp(0.3 * x))
        difference = Function(coarse.space)
        for j, change in enumerate(move.coefficients(s) - s):
            difference += change * coarse.apply(j, u)
        inside = interior_rows(coarse.space).dat.data_ro > 0
        errors.append(np.abs(difference.dat.data_ro[inside]).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.9).all(), (errors, orders)


def test_the_residual_is_that_of_the_projection():
    """Against dense matrices: low-order operators do not hold the Galerkin product of the identity."""
    coarse, fine = (low_on(m) for m in hierarchy("triangle"))
    weights = Function(coarse.space).assign(1.0)
    move = galerkin(fine, coarse, row_weights=weights, inner_product=HilbertSchmidt())
    s = np.array([1.0, 0.5, -0.2, 0.1])
    R, P = (t.matrix(coarse.space, fine.space)[:, :] for t in (FullWeighting(), Linear()))
    exact = R @ sum(c * D[:, :] for c, D in zip(s, fine.matrices, strict=True)) @ P
    M = coarse.mass
    scale = np.sqrt(M)[:, None] / np.sqrt(M)[None, :]
    basis = np.stack([(scale * D[:, :]).ravel() for D in coarse.matrices], axis=1)
    best, *_ = np.linalg.lstsq(basis, (scale * exact).ravel(), rcond=None)
    left = (scale * exact).ravel() - basis @ best
    assert np.abs(move.coefficients(s) - best).max() < 1e-12
    residual = np.linalg.norm(left) / np.linalg.norm(scale * exact)
    assert move.residuals(s)[0] == pytest.approx({"fit": residual, "operator": residual}, rel=1e-10)
    assert residual > 0.05


def test_derivatives_on_triangles_are_their_own_galerkin_products():
    """Theorem: nested P1 spaces have A_H = P^T A_h P, and M_H R = P^T M_h, so K_H is the coarse operator itself."""
    coarse, fine = (low_on(m) for m in hierarchy("triangle", 1))
    R, P = (t.matrix(coarse.space, fine.space) for t in (FullWeighting(), Linear()))
    for D_H, D_h in list(zip(coarse.matrices, fine.matrices, strict=True))[1:]:
        assert np.abs(R.matMult(D_h).matMult(P)[:, :] - D_H[:, :]).max() < 1e-12
    move = galerkin(fine, coarse)
    assert np.abs(move.matrix[:, 1:] - np.eye(4)[:, 1:]).max() < 1e-12
    assert move.matrix[3, 0] > 0.1, "the identity becomes an average: identity plus h^2 Laplacian"


def test_several_levels_at_once_and_in_turn():
    meshes = hierarchy("quadrilateral", 2)
    D = [stencils_on(m) for m in meshes]
    chain = galerkin(D[1], D[0]) @ galerkin(D[2], D[1])
    direct = galerkin(D[2], D[0])
    assert np.abs(chain.matrix - direct.matrix).max() < 1e-12, "P and R over two levels are the products of one level's"
    exact = galerkin_stencil_map((1.0, 1.0)) @ galerkin_stencil_map((0.5, 0.5))
    assert np.abs(chain.matrix - exact.matrix).max() < 1e-12
    s = np.random.default_rng(0).standard_normal((9, 2, 2))
    assert np.abs(chain.inverse().coefficients(chain.coefficients(s)) - s).max() < 1e-10
    assert len(chain.residuals(s)) == 2 and max(r["operator"] for r in chain.residuals(s)) < 1e-12
    with pytest.raises(ValueError, match="do not follow each other"):
        galerkin(*[low_on(m) for m in (meshes[1], meshes[0])]) @ galerkin(D[2], D[1])


def test_from_coarse_to_fine_the_system_may_not_determine_all_operators():
    """Injection after piecewise-constant prolongation adds two of three points: b + c alone can be seen."""
    for route in (
        galerkin_stencil_map((1.0,), Injection(), PiecewiseConstant()),
        galerkin(*[stencils_on(m) for m in reversed(hierarchy("interval"))], Injection(), PiecewiseConstant()),
    ):
        assert route.condition > 1e12
        with pytest.raises(SingularTransferError, match="rank 2: dx, dxx are not determined"):
            route.inverse()
    coarse, fine = hierarchy("quadrilateral")
    with pytest.raises(SingularTransferError, match="9 unknowns from 4 coarse coefficients"):
        galerkin_prolongation(low_on(coarse), stencils_on(fine))


def test_a_control_moves_with_all_its_features_and_times():
    coarse, fine = (stencils_on(m) for m in hierarchy("quadrilateral"))
    controls = cn.ControlSpace(1.0, 3, fine, 2)
    s, b = controls.random(np.random.default_rng(0))
    move = galerkin(fine, coarse)
    moved = move(s)
    assert moved.function_space() == s.function_space()
    there, here = (controls.sampled(np.eye(3), controls.control_set.arrays((f, b)))[0] for f in (moved, s))
    assert np.allclose(there, np.einsum("kj,tjab->tkab", move.matrix, here))
    fewer = galerkin(fine, low_on(coarse.mesh))
    assert fewer(s).function_space().value_size == 4 * 4
    with pytest.raises(ValueError, match="9 C\\^2 components, received 16"):
        move(fewer(s))


def test_extruded_squares_are_hexahedra():
    """The map of coefficients between nested extruded meshes is that of the same hexahedra; top and bottom count."""
    base = MeshHierarchy(RectangleMesh(4, 4, 4.0, 4.0, quadrilateral=True), 1)
    coarse, fine = (stencils_on(m) for m in ExtrudedMeshHierarchy(base, 4.0, base_layer=4))
    assert interior_rows(coarse.space).dat.data_ro.sum() == 3**3
    move = galerkin(fine, coarse)
    assert np.abs(move.matrix - galerkin_stencil_map((0.5,) * 3).matrix).max() < 1e-11
    assert max(move.residuals(np.eye(27))[0].values()) < 1e-11


def test_rediscretisation_matches_operators_by_name():
    quadrilaterals, triangles = (RectangleMesh(5, 4, 5.0, 4.0, quadrilateral=q) for q in (True, False))
    low, all_nine = low_on(quadrilaterals), stencils_on(quadrilaterals)
    same = rediscretise(low, low_on(triangles))
    assert np.array_equal(same.matrix, np.eye(4)) and np.isfinite(same.condition)
    assert np.array_equal(rediscretise(low, low_on(Mesh(str(SQUARE)))).matrix, np.eye(4))
    V = low.space
    others = [cn.laplacian, cn.Operator("1"), cn.derivative(1), cn.derivative(0), cn.second_derivative(0)]
    ours = cn.Operators(V, others)
    s = np.array([1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(rediscretise(low, ours).coefficients(s), [4.0, 1.0, 3.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="lacks the operators laplacian; it has 1, dy"):
        rediscretise(low, all_nine)
    with pytest.raises(ValueError, match="no counterpart in dimension 1"):
        rediscretise(low, low_on(IntervalMesh(4, 1.0)))


def test_transfer_on_a_closed_mesh_and_over_a_factor_of_three():
    coarse, fine = (stencils_on(PeriodicRectangleMesh(n, n, 8.0, 8.0, quadrilateral=True)) for n in (4, 8))
    assert interior_rows(coarse.space).dat.data_ro.min() == 1.0
    torus = galerkin(fine, coarse, inner_product=HilbertSchmidt())
    assert np.abs(torus.matrix - galerkin_stencil_map((1.0, 1.0)).matrix).max() < 1e-12
    with pytest.raises(ValueError, match="periodic mesh.*HilbertSchmidt"):
        galerkin(fine, coarse)
    nine, three = (low_on(RectangleMesh(n, n, 9.0, 9.0, quadrilateral=True)) for n in (9, 3))
    move = galerkin(nine, three)
    assert np.abs(move.matrix - np.eye(4)).max() > 1e-3, "Galerkin coarsening is not rediscretisation"
    assert move.residuals(np.eye(4)[1])[0]["operator"] < 0.7


@pytest.mark.parametrize("fine, message", [
    (lambda: RectangleMesh(6, 6, 1.0, 1.0), "is not nested"),
    (lambda: RectangleMesh(2, 2, 1.0, 1.0), "is not nested"),
    (lambda: RectangleMesh(8, 8, 0.5, 1.0), "is not nested"),
    (lambda: RectangleMesh(8, 8, 2.0, 1.0), "Give two meshes of one domain"),
    (lambda: IntervalMesh(8, 1.0), "The coarse mesh has dimension 2, the fine one 1"),
])
def test_levels_that_do_not_nest_are_refused(fine, message):
    coarse = low_on(RectangleMesh(4, 4, 1.0, 1.0))
    with pytest.raises(NestingError, match=message):
        galerkin(low_on(fine()), coarse)


def test_bad_transfers_are_refused():
    coarse, fine = (stencils_on(m) for m in hierarchy("quadrilateral"))
    with pytest.raises(ValueError, match="A restriction is needed, received Linear"):
        galerkin(fine, coarse, Linear())
    with pytest.raises(ValueError, match="A prolongation is needed, received 'linear'"):
        galerkin_stencil_map((1.0,), prolongation="linear")
    with pytest.raises(ValueError, match="not zero everywhere"):
        galerkin(fine, coarse, row_weights=Function(coarse.space))
    with pytest.raises(ValueError, match="not negative"):
        galerkin(fine, coarse, row_weights=Function(coarse.space).assign(-1.0))
    with pytest.raises(ValueError, match="on the coarse operators' space"):
        galerkin(fine, coarse, row_weights=Function(fine.space).assign(1.0))
    tiny = MeshHierarchy(RectangleMesh(1, 1, 1.0, 1.0, quadrilateral=True), 1)
    with pytest.raises(ValueError, match="none inside"):
        galerkin(stencils_on(tiny[1]), stencils_on(tiny[0]))
    V = coarse.space
    dependent = cn.Operators(V, [cn.laplacian, cn.second_derivative(0), cn.second_derivative(1)])
    with pytest.raises(ValueError, match="laplacian, dxx, dyy are linearly dependent"):
        galerkin(fine, dependent)
    with pytest.raises(ValueError, match="dx are zero in the inner product.*Moments\\(degree\\)"):
        galerkin(fine, cn.Operators(V, [cn.Operator("1"), cn.derivative(0)]), inner_product=Moments(0))
    with pytest.raises(ValueError, match="degree of 0 or more"):
        Moments(-1)
    with pytest.raises(ValueError, match="received the shape \\(3,\\)"):
        galerkin(fine, coarse).coefficients(np.ones(3))
    with pytest.raises(ValueError, match="first 2 axes"):
        galerkin_stencils(np.ones((3, 2)), 2)


def test_the_map_prints_as_a_table():
    text = str(galerkin_stencil_map((1.0,)))
    assert "dxx" in text and "condition number" in text and "0.5" in text


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_maps_on_any_number_of_ranks():
    for kind, basis in (("quadrilateral", stencils_on), ("triangle", low_on), ("interval", stencils_on)):
        found = []
        for comm in (COMM_WORLD, COMM_SELF):
            coarse, fine = (basis(m) for m in hierarchy(kind, comm=comm))
            for restriction in RESTRICTIONS:
                for prolongation in PROLONGATIONS:
                    move = galerkin(fine, coarse, restriction, prolongation)
                    defects = [r.defect / np.abs(r.energy).max() for r in (move.fit, move.operator)]
                    found.append(np.stack([move.matrix, *defects]))
        half = len(found) // 2
        error = max(np.abs(a - b).max() for a, b in zip(found[:half], found[half:], strict=True))
        assert COMM_WORLD.allreduce(float(error), op=MPI.MAX) < 1e-12, kind
