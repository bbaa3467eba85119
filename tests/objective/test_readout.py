"""Scores as integrals of fields: quadrature, transposes, coarse readout spaces, prolongation, regularisation."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    BoxMesh,
    ExtrudedMesh,
    ExtrudedMeshHierarchy,
    Function,
    FunctionSpace,
    IntervalMesh,
    MeshHierarchy,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
    as_vector,
    assemble,
    cos,
    dx,
    exp,
    grad,
    inner,
    interpolate,
    sin,
)
from support.surfaces import network_on, smooth, spaces_on_spheres

from ctrlnet import ControlSpace, Network, Readout, low_order_operators
from ctrlnet.operators import lumped_dx, sphere_hierarchy

C, K, IMAGES = 2, 3, 4


def network(cells, quadrilateral=False):
    V = FunctionSpace(RectangleMesh(cells, cells, 2.0, 1.5, quadrilateral=quadrilateral), "CG", 1)
    D = low_order_operators(V)
    return Network(D, ControlSpace(1.0, 1, D, C))


def coarse_space(quadrilateral=False, cells=2):
    return FunctionSpace(RectangleMesh(cells, cells, 2.0, 1.5, quadrilateral=quadrilateral), "CG", 1)


def classifier(readout):
    """A smooth W with the components W[c, k] in C order, and beta."""
    W, beta = readout.zero()
    x, y = SpatialCoordinate(readout.space.mesh())
    W.interpolate(as_vector([sin((c + 1) * x) + (k - 1) * cos(y + c) for c in range(C) for k in range(K)]))
    beta.dat.data[:] = [0.5, -1.0, 2.0]
    return W, beta


def state(net, images=IMAGES):
    """Random nodal values (owned, C, images)."""
    return np.random.default_rng(4).standard_normal((net.operators.mass.size, C, images))


def scores(readout, W, beta, Y):
    weights, biases = readout.arrays((W, beta))
    return weights.T @ readout.restrict(Y) + biases[:, None]


def integrals(net, W, beta, Y):
    """int w_k . Y dx + beta_k by vertex quadrature, assembled by Firedrake; W in the network's space."""
    out = np.empty((K, Y.shape[-1]))
    y = Function(VectorFunctionSpace(net.space.mesh(), net.space.ufl_element(), dim=C))
    for i in range(Y.shape[-1]):
        y.dat.data[:] = Y[:, :, i]
        for k in range(K):
            out[k, i] = assemble(sum(W[c * K + k] * y[c] for c in range(C)) * lumped_dx()) + beta.dat.data_ro.ravel()[k]
    return out


@pytest.mark.parametrize("quadrilateral", [True, False])
def test_scores_are_integrals(quadrilateral):
    net = network(5, quadrilateral)
    readout = Readout(net, K)
    assert readout.features == 36 * C
    W, beta = classifier(readout)
    Y = state(net)
    np.testing.assert_allclose(scores(readout, W, beta, Y), integrals(net, W, beta, Y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("quadrilateral", [True, False])
def test_scores_of_a_coarse_readout_are_integrals_of_the_same_field(quadrilateral):
    """W in a coarse space acts as its interpolant in the network's: few features, the same integral."""
    net = network(6, quadrilateral)
    readout = Readout(net, K, coarse_space(quadrilateral))
    assert readout.features == 9 * C, "the number of features is that of the readout space, whatever the mesh"
    W, beta = classifier(readout)
    fine = VectorFunctionSpace(net.space.mesh(), net.space.ufl_element(), dim=C * K)
    on_network = assemble(interpolate(W, fine))
    Y = state(net)
    np.testing.assert_allclose(scores(readout, W, beta, Y), integrals(net, on_network, beta, Y), rtol=0, atol=1e-12)


def test_scores_do_not_depend_on_h():
    """Linear w against constant features is integrated exactly on any mesh; smooth ones to second order."""
    exact, errors = None, []
    for cells in (4, 8, 16, 64):
        net = network(cells)
        readout = Readout(net, K)
        W, beta = readout.zero()
        x, y = SpatialCoordinate(net.space.mesh())
        W.interpolate(as_vector([1 + k + x - 2 * y for _ in range(C) for k in range(K)]))
        constant = scores(readout, W, beta, np.ones((net.space.dim(), C, 1)))
        # int 1 + k + x - 2y over (0, 2) x (0, 1.5), for each of C features.
        np.testing.assert_allclose(constant[:, 0], [C * 3.0 * (1 + k + 1 - 1.5) for k in range(K)], rtol=1e-12)
        smooth = Function(net.space).interpolate(exp(-x * y)).dat.data_ro
        W, beta = classifier(readout)
        errors.append(scores(readout, W, beta, np.repeat(smooth[:, None, None], C, axis=1)))
        exact = errors[-1]
    errors = [np.abs(e - exact).max() for e in errors[:-1]]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > 1.8, f"the score converges at second order to an integral, measured {orders}"


@pytest.mark.parametrize("coarse", [False, True])
def test_restriction_and_its_transpose(coarse):
    """<R Y, F> = <Y, R^T F> to round-off."""
    net = network(5)
    readout = Readout(net, K, coarse_space() if coarse else None)
    Y, out = state(net), np.empty((net.operators.mass.size, C, IMAGES))
    F = np.random.default_rng(5).standard_normal((readout.features, IMAGES))
    readout.restrict_adjoint(F, out)
    np.testing.assert_allclose((readout.restrict(Y) * F).sum(), (Y * out).sum(), rtol=1e-12)


@pytest.mark.parametrize("quadrilateral", [True, False])
def test_a_prolonged_classifier_gives_the_same_scores(quadrilateral):
    """Coarse to fine readout space on one network: the same field, so the same scores."""
    net = network(6, quadrilateral)
    coarse = Readout(net, K, coarse_space(quadrilateral))
    W, beta = classifier(coarse)
    fine = Readout(net, K)
    Y = state(net)
    fine_W, fine_beta = coarse.prolong((W, beta), fine)
    np.testing.assert_allclose(scores(fine, fine_W, fine_beta, Y), scores(coarse, W, beta, Y), rtol=0, atol=1e-12)
    again, _ = coarse.prolong((W, beta), coarse.on(net))
    np.testing.assert_array_equal(again.dat.data_ro, W.dat.data_ro)


def test_a_readout_moves_with_its_network():
    """A coarse readout space stays when the network is refined: W and its features keep their shape."""
    readout = Readout(network(4), K, coarse_space())
    finer = readout.on(network(8))
    assert finer.space is readout.space and finer.features == readout.features
    W, beta = classifier(readout)
    constant = np.ones((finer.network.space.dim(), C, 1))
    expected = scores(readout, W, beta, np.ones((readout.network.space.dim(), C, 1)))
    np.testing.assert_allclose(scores(finer, W, beta, constant), expected, rtol=1e-12)


def test_weights_and_arrays():
    """W[c, k] of a node is the C-order flattening; arrays and Functions are two names of the same numbers."""
    readout = Readout(network(3), K)
    W, beta = readout.zero()
    W.dat.data[:] = np.arange(16 * C * K).reshape(16, C * K)
    array, biases = readout.arrays((W, beta))
    assert array.shape == (readout.features, K)
    np.testing.assert_array_equal(array.reshape(16, C, K)[5, 1], W.dat.data_ro[5].reshape(C, K)[1])
    back, _ = readout.classifier(array, biases)
    np.testing.assert_array_equal(back.dat.data_ro, W.dat.data_ro)


def test_regularisation_is_the_exact_integral():
    """W = x in every component: int |grad W|^2 = C K 3, vertex quadrature of x^2; beta counts once."""
    readout = Readout(network(4), K)
    W, beta = readout.zero()
    x, _ = SpatialCoordinate(readout.space.mesh())
    W.interpolate(as_vector([x] * (C * K)))
    beta.dat.data[:] = [1.0, 2.0, 3.0]
    field, bias = (assemble(f) for f in readout.regularisation((W, beta), 0.4, 0.0))
    np.testing.assert_allclose((field, bias), (0.2 * C * K * 3.0, 0.0), atol=1e-13)
    field, bias = (assemble(f) for f in readout.regularisation((W, beta), 0.0, 0.6))
    # The trapezoidal rule of x^2 on 4 cells of width 1/2, times the height.
    square = 1.5 * 0.5 * (0.25 + 1.0 + 2.25 + 2.0)
    np.testing.assert_allclose((field, bias), (0.3 * C * K * square, 0.3 * 14.0), rtol=1e-13)


@pytest.mark.parametrize("coarse", [False, True])
def test_regularisation_matrix_is_that_of_the_form(coarse):
    readout = Readout(network(4), K, coarse_space(cells=3) if coarse else None)
    W, beta = classifier(readout)
    matrix = readout.regularisation_matrix(0.4, 0.6)
    values = readout.arrays((W, beta))[0].reshape(readout.space.dim(), -1)
    field, _ = readout.regularisation((W, beta), 0.4, 0.6)
    np.testing.assert_allclose(0.5 * (values * (matrix @ values)).sum(), assemble(field), rtol=1e-12)
    rough = assemble(inner(grad(W), grad(W)) * dx)
    np.testing.assert_allclose((values * (readout.regularisation_matrix(1.0, 0.0) @ values)).sum(), rough, rtol=1e-12)


def test_a_coarse_readout_of_a_sphere():
    """Two levels apart: W acts as its values at vertices and midpoints; no matrix by hand, and the integral is kept."""
    levels = spaces_on_spheres(3)
    net = network_on(levels[3])
    readout = Readout(net, K, levels[1])
    assert readout.features == 42 * C
    W, beta = (smooth(readout.weights_space), readout.zero().beta)
    Y = state(net)
    on_network, _ = readout.prolong((W, beta), Readout(net, K))
    np.testing.assert_allclose(scores(readout, W, beta, Y), integrals(net, on_network, beta, Y), rtol=0, atol=1e-11)
    total = np.einsum("n,nci->ci", net.operators.mass, Y)
    np.testing.assert_allclose(readout.restrict(Y).reshape(42, C, IMAGES).sum(axis=0), total, atol=1e-11)
    constant = Function(readout.weights_space).assign(1.0)
    np.testing.assert_allclose(readout.prolong((constant, beta), Readout(net, K)).W.dat.data_ro, 1.0, atol=1e-15)
    between = readout.prolong((W, beta), Readout(net, K, levels[2]))
    further, _ = Readout(net, K, levels[2]).prolong(between, Readout(net, K))
    np.testing.assert_allclose(further.dat.data_ro, on_network.dat.data_ro, atol=1e-14)


def test_scores_on_a_sphere_converge():
    """The same W on 42 nodes, smooth features: of second order in the network's mesh, whatever the transfer between."""
    levels, found = spaces_on_spheres(6), []
    for V in levels[2:]:
        readout = Readout(network_on(V), K, levels[1])
        Y = smooth(V).dat.data_ro
        features = np.repeat(Y[:, None, None], C, axis=1)
        found.append(scores(readout, smooth(readout.weights_space), readout.zero().beta, features))
    errors = [np.abs(a - b).max() for a, b in zip(found, found[1:], strict=False)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - 2).max() < 0.2, orders


def test_volumes_have_readouts():
    """A slab of prisms with a coarse readout, a shell with its own: constants are integrated."""
    slab = ExtrudedMeshHierarchy(MeshHierarchy(RectangleMesh(2, 2, 2.0, 1.5), 1), 1.0, base_layer=1)
    shell = ExtrudedMesh(sphere_hierarchy(1.0, 1)[1], 2, 0.1, extrusion_type="radial")
    for mesh, coarse in ((slab[1], slab[0]), (shell, None), (BoxMesh(2, 2, 2, 1, 1, 1), None)):
        net = network_on(FunctionSpace(mesh, "CG", 1))
        readout = Readout(net, K, None if coarse is None else FunctionSpace(coarse, "CG", 1))
        Y = state(net)
        total = np.einsum("n,nci->ci", net.operators.mass, Y)
        np.testing.assert_allclose(readout.restrict(Y).reshape(-1, C, IMAGES).sum(axis=0), total, atol=1e-12)


def test_global_average_pooling():
    """One cell with one value covers the domain: scores are those of the integrals of the features."""
    net = network(4)
    readout = Readout(net, K, FunctionSpace(RectangleMesh(1, 1, 2.0, 1.5, quadrilateral=True), "DG", 0))
    Y = state(net)
    assert readout.nodes == 1
    np.testing.assert_allclose(readout.restrict(Y), np.einsum("n,nci->ci", net.operators.mass, Y), atol=1e-12)


SMALLER = {
    "nodes far outside": lambda: RectangleMesh(2, 2, 1.0, 0.75),
    "nodes a little outside": lambda: RectangleMesh(2, 2, 1.9, 1.5),
    "a surface": lambda: sphere_hierarchy(1.0, 1)[1],
    "a line": lambda: IntervalMesh(3, 2.0),
}


@pytest.mark.parametrize("name", SMALLER)
def test_a_readout_mesh_that_does_not_cover_the_domain_is_refused(name):
    """Firedrake would extrapolate to points a little outside, with negative weights."""
    with pytest.raises(ValueError, match=r"does not cover the nodes of|dimension"):
        Readout(network(4), K, FunctionSpace(SMALLER[name](), "CG", 1))
    larger = Readout(network(4), K, FunctionSpace(RectangleMesh(2, 2, 2.1, 1.6), "CG", 1))
    assert larger.features == 9 * C


@pytest.mark.parametrize("space", [
    lambda mesh: FunctionSpace(mesh, "R", 0), lambda mesh: VectorFunctionSpace(mesh, "CG", 1)])
def test_a_space_that_is_not_scalar_or_has_no_nodes_is_refused(space):
    with pytest.raises(ValueError, match="needs a scalar space with nodes .*'DG', 0.* of one cell that covers"):
        Readout(network(2), K, space(network(2).space.mesh()))


def test_a_readout_without_scores_is_refused():
    with pytest.raises(ValueError, match="a whole number of classes or components, at least one; received 0"):
        Readout(network(2), 0)


@pytest.mark.parametrize("weights", [(-1.0, 0.0), (0.0, -1e-9)])
def test_negative_weights_are_refused(weights):
    readout = Readout(network(2), K)
    for call in (lambda: readout.regularisation(readout.zero(), *weights),
                 lambda: readout.regularisation_matrix(*weights)):
        with pytest.raises(ValueError, match="must not be negative, and finite; received gradient="):
            call()
