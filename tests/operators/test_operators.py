"""Operators from forms against finite-difference stencils, at interior and at boundary nodes."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
from firedrake import (
    BoxMesh,
    Constant,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IntervalMesh,
    PeriodicIntervalMesh,
    PeriodicRectangleMesh,
    RectangleMesh,
    SpatialCoordinate,
    TestFunction,
    UnitCubeMesh,
    UnitSquareMesh,
    VectorFunctionSpace,
    assemble,
    cos,
    dot,
    dx,
    exp,
    grad,
    inner,
    sin,
)

from ctrlnet import (
    Operator,
    Operators,
    derivative,
    interior_stencil,
    laplacian,
    low_order_operators,
    second_derivative,
    stencil_operators,
)
from ctrlnet.operators import identity, lumped_dx
from ctrlnet.operators.stencils import names, stencil_basis, to_coefficients, to_stencil

TENSOR_PRODUCT = ["interval", "quadrilateral", "hexahedron"]
DIMENSION = {"interval": 1, "quadrilateral": 2, "triangle": 2, "hexahedron": 3, "tetrahedron": 3}


def one_dimensional(n, h):
    """1, d and d2 on n nodes as this package documents them: natural boundary at both ends."""
    d = (np.eye(n, k=1) - np.eye(n, k=-1)) / (2 * h)
    d[0, :2] = d[-1, -2:] = np.array([-1, 1]) / h
    d2 = (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1)) / h**2
    d2[0, :2] = np.array([-2, 2]) / h**2
    d2[-1, -2:] = np.array([2, -2]) / h**2
    return np.eye(n), d, d2


def on_grid(matrix, places, h):
    """Return a dense matrix with nodes in the C order of the grid's axes."""
    rank = np.lexsort(np.rint(places / h).astype(int).T[::-1])
    return matrix[np.ix_(rank, rank)]


def dense(operators):
    table = operators.table
    return table.forward.dense(table.nodes)


@pytest.mark.parametrize("h", [1.0, 2.0, 0.3])
@pytest.mark.parametrize("kind", TENSOR_PRODUCT)
def test_interior_stencils_are_finite_differences(space, kind, h):
    V = space(kind, 4, h)
    operators = stencil_operators(V)
    dim = DIMENSION[kind]
    assert operators.names == list(names(dim))
    expected = stencil_basis((h,) * dim)
    for unit, stencil in zip(np.eye(len(operators)), expected, strict=True):
        size = np.abs(stencil).max()
        np.testing.assert_allclose(interior_stencil(operators, unit), stencil, rtol=0, atol=1e-12 * max(1, size))


@pytest.mark.parametrize("kind", TENSOR_PRODUCT)
def test_every_node_is_a_product_of_one_dimensional_rows(space, coordinates, kind):
    """At all nodes, edges and corners too: D = A_x (x) A_y (x) A_z with the natural boundary in each factor."""
    h, cells, dim = 0.5, 3, DIMENSION[kind]
    V = space(kind, cells, h)
    factors = [one_dimensional(cells + axis + 1, h) for axis in range(dim)]
    matrices = dense(stencil_operators(V))
    for matrix, choice in zip(matrices, itertools.product(range(3), repeat=dim), strict=True):
        expected = reduce(np.kron, [factors[axis][order] for axis, order in enumerate(choice)])
        error = np.abs(on_grid(matrix, coordinates(V), h) - expected).max()
        assert error < 1e-12 * np.abs(expected).max(), f"operator {choice} differs at a node by {error}"


def test_natural_boundary_of_one_axis(space, coordinates):
    """The documented rows: d is one-sided, [-1, 1]/h; d2 is [-2, 2]/h^2, as if mirrored at the end node."""
    h = 0.25
    V = space("interval", 6, h)
    _, d, d2 = (on_grid(m, coordinates(V), h) for m in dense(stencil_operators(V)))
    np.testing.assert_allclose(d[[0, -1]][:, [0, 1, -2, -1]], np.array([[-1, 1, 0, 0], [0, 0, -1, 1]]) / h, atol=1e-12)
    ends = d2[[0, -1]][:, [0, 1, -2, -1]]
    np.testing.assert_allclose(ends, np.array([[-2, 2, 0, 0], [0, 0, 2, -2]]) / h**2, atol=1e-11)
    y = np.random.default_rng(1).standard_normal(7)
    mirrored = np.array([y[1] - 2 * y[0] + y[1], y[-2] - 2 * y[-1] + y[-2]]) / h**2
    np.testing.assert_allclose((d2 @ y)[[0, -1]], mirrored, rtol=1e-12)


@pytest.mark.parametrize("h", [1.0, 2.0])
def test_combination_of_the_source(space, h):
    """Coefficients stay, the stencil changes with h; the source's kernel [-1, -2, 1] is s = (-2, 2, 0)."""
    operators = stencil_operators(space("interval", 5, h))
    s = to_coefficients([-1, -2, 1], (1.0,))
    np.testing.assert_allclose(s, [-2, 2, 0], atol=1e-15)
    expected = {1.0: [-1, -2, 1], 2.0: [-0.5, -2, 0.5]}[h]
    np.testing.assert_allclose(interior_stencil(operators, s), expected, atol=1e-12)
    # What the source prints instead, -2 + 2 d - 0.5 d2.
    expected = {1.0: [-1.5, -1, 0.5], 2.0: [-0.625, -1.75, 0.375]}[h]
    np.testing.assert_allclose(interior_stencil(operators, np.array([-2, 2, -0.5])), expected, atol=1e-12)


def test_spacings_may_differ_between_axes():
    V = FunctionSpace(RectangleMesh(5, 4, 5.0, 2.0, quadrilateral=True), "CG", 1)
    c = np.random.default_rng(2).standard_normal(9)
    np.testing.assert_allclose(interior_stencil(stencil_operators(V), c), to_stencil(c, (1.0, 0.5)), atol=1e-12)


def test_kernels_and_coefficients_are_one_change_of_basis_apart(space):
    kernel = np.random.default_rng(3).standard_normal((3, 3))
    operators = stencil_operators(space("quadrilateral", 4, 0.5))
    np.testing.assert_allclose(interior_stencil(operators, to_coefficients(kernel, (0.5, 0.5))), kernel, atol=1e-12)


@pytest.mark.parametrize(
    "mesh", [lambda: PeriodicIntervalMesh(6, 3.0), lambda: PeriodicRectangleMesh(6, 5, 3.0, 2.5, quadrilateral=True)]
)
def test_periodic_meshes_have_no_boundary(mesh):
    operators = stencil_operators(FunctionSpace(mesh(), "CG", 1))
    assert operators.table.forward.classes == 1, "translation invariance: all rows of a periodic uniform mesh are equal"
    rows = dense(operators).sum(axis=2)
    np.testing.assert_allclose(rows, np.outer(np.eye(len(operators))[0], np.ones(rows.shape[1])), atol=1e-11)


@pytest.mark.parametrize("kind", DIMENSION)
def test_low_order_operators_are_exact_on_linear_functions(space, kind):
    V = space(kind, 4, 0.5)
    operators = low_order_operators(V)
    dim = DIMENSION[kind]
    assert operators.names == ["1", *["dx", "dy", "dz"][:dim], "laplacian"]
    slopes = np.array([3.0, -2.0, 0.5])[:dim]
    x = SpatialCoordinate(V.mesh())
    u = Function(V).interpolate(1 + dot(Constant(slopes), x))
    for axis in range(dim):
        np.testing.assert_allclose(operators.apply(1 + axis, u).dat.data_ro, slopes[axis], atol=1e-12)
    # The Laplacian of a linear function is a boundary flux alone: its lumped integral is zero.
    total = operators.mass @ operators.apply(dim + 1, u).dat.data_ro
    assert abs(total) < 1e-11, "the natural boundary conserves: int Delta_h u = 0"


def test_second_derivatives_and_products(coordinates):
    """The laplacian is the sum of the second derivatives; dx dy of the stencils is dx after dy."""
    V = FunctionSpace(RectangleMesh(5, 5, 5, 5, quadrilateral=True), "CG", 1)
    mine = Operators(V, [
        laplacian, second_derivative(0), second_derivative(1), second_derivative(0, 1), derivative(0) @ derivative(1),
        derivative(0), derivative(1), identity @ identity,
    ])
    assert mine.names == ["laplacian", "dxx", "dyy", "dxy", "dx dy", "dx", "dy", "1"]
    D = dense(mine)
    np.testing.assert_allclose(D[0], D[1] + D[2], atol=1e-12)
    np.testing.assert_allclose(D[4], D[5] @ D[6], atol=1e-12)
    np.testing.assert_allclose(D[7], np.eye(36), atol=1e-15)
    x, y = SpatialCoordinate(V.mesh())
    mixed = mine.apply(3, Function(V).interpolate(x * y)).dat.data_ro
    places = coordinates(V)
    inside = ((places > 0.5) & (places < 4.5)).all(axis=1)
    np.testing.assert_allclose(mixed[inside], 1.0, atol=1e-12)


def test_a_user_form_is_used_as_it_is(space):
    """D = M_L^{-1} A for a form with variable coefficients, its own quadrature and a boundary term."""
    V = space("triangle", 4)
    x, y = SpatialCoordinate(V.mesh())
    kappa, wind = exp(x * y), Constant((1.0, -2.0))

    def form(u, v):
        return -kappa * inner(grad(u), grad(v)) * dx + dot(wind, grad(u)) * v * dx(degree=3)

    operators = Operators(V, [Operator("mine", (form,))])
    u = Function(V).interpolate(sin(3 * x) + cos(y))
    expected = assemble(form(u, TestFunction(V))).dat.data_ro / assemble(TestFunction(V) * lumped_dx()).dat.data_ro
    np.testing.assert_allclose(operators.apply(0, u).dat.data_ro, expected, rtol=1e-12)
    # Coefficients of the form belong to its own mesh, as the operator belongs to it.
    assert operators.table.operators == 1 and operators.nodes == V.dim()


def test_the_mass_is_the_volume(space):
    for kind in DIMENSION:
        V = space(kind, 3, 0.5)
        operators = low_order_operators(V)
        np.testing.assert_allclose(operators.mass.sum(), assemble(Constant(1.0) * dx(domain=V.mesh())), rtol=1e-13)


def test_operators_move_to_another_mesh(space):
    coarse = stencil_operators(space("quadrilateral", 4, 1.0))
    fine = coarse.on(space("quadrilateral", 8, 0.5))
    assert fine.names == coarse.names
    c = np.arange(9.0)
    np.testing.assert_allclose(interior_stencil(fine, c), to_stencil(c, (0.5, 0.5)), atol=1e-11)


def test_stencil_of_an_interior_node_needs_one(space):
    V = space("interval", 1)
    with pytest.raises(ValueError, match="No node of .* has its neighbours on a uniform grid"):
        interior_stencil(stencil_operators(V), np.ones(3))


SPACES = {
    "degree 2": lambda: FunctionSpace(UnitSquareMesh(2, 2), "CG", 2),
    "discontinuous": lambda: FunctionSpace(UnitSquareMesh(2, 2), "DG", 0),
    "discontinuous linear": lambda: FunctionSpace(UnitSquareMesh(2, 2, quadrilateral=True), "DG", 1),
    "vector": lambda: VectorFunctionSpace(UnitSquareMesh(2, 2), "CG", 1),
    "no nodes at vertices": lambda: FunctionSpace(UnitSquareMesh(2, 2), "CR", 1),
    "extruded, degree 2": lambda: FunctionSpace(ExtrudedMesh(UnitSquareMesh(2, 2), 2), "CG", 2),
    "extruded, discontinuous": lambda: FunctionSpace(
        ExtrudedMesh(UnitSquareMesh(2, 2), 2), "CG", 1, vfamily="DG", vdegree=1),
    "extruded, constant along layers": lambda: FunctionSpace(
        ExtrudedMesh(UnitSquareMesh(2, 2, quadrilateral=True), 2), "CG", 1, vfamily="R", vdegree=0),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_without_lumped_mass_is_refused(name):
    V = SPACES[name]()
    with pytest.raises(ValueError, match=r"scalar continuous space of degree 1, whose mass can be lumped; received .*"
                                         r"Use FunctionSpace\(mesh, 'CG', 1\)"):
        Operators(V, [identity])


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([], "At least one operator is needed, received none"),
        ([identity, identity], r"names must differ, received \['1', '1'\]"),
        ([derivative(0), Operator("dx", (lambda u, v: u * v * dx,))], "names must differ"),
    ],
)
def test_bad_lists_of_operators(space, operators, message):
    with pytest.raises(ValueError, match=message):
        Operators(space("triangle", 2), operators)


def test_a_form_on_another_mesh_is_refused(space):
    V, other = space("triangle", 2), UnitSquareMesh(3, 3)
    elsewhere = Operator("elsewhere", (lambda u, v: u * v * dx(domain=other),))
    with pytest.raises(ValueError, match=r"'elsewhere' integrates over .* but the images live on .*from its arguments"):
        _ = Operators(V, [identity, elsewhere]).table


@pytest.mark.parametrize(
    "form",
    [lambda u, v: v * dx, lambda u, v: 1.0, lambda u, v: u * v, lambda u, v: Constant(2.0) * v * lumped_dx()],
    ids=["linear", "number", "no integral", "source"],
)
def test_a_form_that_is_not_bilinear_is_refused(space, form):
    with pytest.raises(ValueError, match="'wrong' must return a bilinear form of its two arguments, received"):
        _ = Operators(space("quadrilateral", 2), [Operator("wrong", (form,))]).table


@pytest.mark.parametrize("mesh", [lambda: UnitSquareMesh(2, 2), lambda: UnitCubeMesh(1, 1, 1)])
def test_the_stencil_basis_needs_a_tensor_product_mesh(mesh):
    with pytest.raises(ValueError, match=r"a flat tensor-product mesh .*received (triangle|tetrahedron).*low_order"):
        stencil_operators(FunctionSpace(mesh(), "CG", 1))


def test_degenerate_cells_are_refused():
    mesh = IntervalMesh(3, 3.0)
    mesh.coordinates.dat.data[:] = 0.0
    with pytest.raises(ValueError, match="lumped mass of .* has the entry .*must be positive at every node"):
        low_order_operators(FunctionSpace(mesh, "CG", 1))


@pytest.mark.parallel(nprocs=[1, 2])
def test_a_mesh_that_moved_is_noticed():
    """Operators are those of the places where the nodes were, before and after they were assembled; writing the same
    coordinates moves nothing."""
    mesh = RectangleMesh(4, 4, 1.0, 1.0)
    V = FunctionSpace(mesh, "CG", 1)
    used, fresh = low_order_operators(V), low_order_operators(V)
    x = Function(V).interpolate(SpatialCoordinate(mesh)[0])
    np.testing.assert_allclose(used.apply(1, x).dat.data_ro, 1.0, atol=1e-12)
    mesh.coordinates.dat.data[:] *= 1.0
    np.testing.assert_allclose(used.apply(1, x).dat.data_ro, 1.0, atol=1e-12)
    mesh.coordinates.dat.data[:] *= 2.0
    for operators in (used, fresh):
        for use in (lambda o: o.apply(1, x), lambda o: o.matrices, lambda o: o.table, lambda o: o.norms):
            with pytest.raises(ValueError, match=r"nodes of .* have moved since .* Make new ones, operators.on\(V\)"):
                use(operators)
    np.testing.assert_allclose(used.on(V).apply(1, x).dat.data_ro, 0.5, atol=1e-12)


def test_stretched_hexahedra():
    V = FunctionSpace(BoxMesh(4, 4, 5, 4.0, 2.0, 10.0, hexahedral=True), "CG", 1)
    c = np.random.default_rng(4).standard_normal(27)
    np.testing.assert_allclose(interior_stencil(stencil_operators(V), c), to_stencil(c, (1.0, 0.5, 2.0)), atol=1e-11)
