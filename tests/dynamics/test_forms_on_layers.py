"""Forms with boundary terms, coefficients and geometry: images stepped together are as each alone on the mesh."""

import numpy as np
import pytest
import ufl
from firedrake import (
    CellDiameter,
    CellVolume,
    FacetArea,
    FacetNormal,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    TensorFunctionSpace,
    UnitSquareMesh,
    VectorFunctionSpace,
    as_vector,
    div,
    dot,
    dS,
    ds,
    dx,
    grad,
    inner,
    jump,
    sin,
)
from irksome import BackwardEuler, Dt
from support.derivatives import check_derivatives
from support.networks import square

import ctrlnet as cn
from ctrlnet.operators import lumped_dx

TIGHT = {"snes_rtol": 1e-13, "snes_atol": 1e-13}


def numbers(space, seed=0):
    f = Function(space)
    f.dat.data_wo[:] = 0.2 + 0.3 * np.random.default_rng(seed).random(f.dat.data_ro.shape)
    return f


# What each adds to the equation on a mesh: a function of state and test function.


def robin(mesh):
    return lambda Y, v: 2 * inner(Y, v) * ds(1) - inner(Y, v) * ds((2, 3)) + 0.1 * inner(Y, v) * ds


def inflow(mesh):
    x = SpatialCoordinate(mesh)
    return lambda Y, v: x[1] * dot(as_vector([1, -2]), FacetNormal(mesh)) * inner(Y, v) * ds - sin(x[0]) * v[0] * dx


def coefficients(mesh):
    kappa, u = numbers(FunctionSpace(mesh, "DG", 0)), numbers(VectorFunctionSpace(mesh, "CG", 1))
    A = numbers(TensorFunctionSpace(mesh, "DG", 1))
    return lambda Y, v: (kappa * div(Y) * div(v) + inner(dot(grad(Y), u), v) + inner(dot(grad(Y), A), grad(v))) * dx


def sizes(mesh):
    return lambda Y, v: (
        CellDiameter(mesh) ** 2 * inner(grad(Y), grad(v)) + CellVolume(mesh) * inner(Y, v)) * dx


def jumps(mesh):
    return lambda Y, v: 0.1 * inner(jump(grad(Y)), jump(grad(v))) * dS


TERMS = [robin, inflow, coefficients, sizes, jumps]


def network_of(term, images, parts=1, quadrilateral=True, cells=3):
    operators = cn.low_order_operators(FunctionSpace(square(cells, quadrilateral), "CG", 1))
    extra = term(operators.mesh) if term else lambda Y, v: ufl.Form([])

    def residual(Y, v, layer):
        if parts == 1:
            return inner(Dt(Y), v) * lumped_dx() + extra(Y, v) - layer.affine(Y, v)
        (U, R), (v, w) = Y, v
        fast = (inner(Dt(U) + R, v) + inner(Dt(R) - U, w)) * lumped_dx()
        return fast + extra(U, v) + extra(R, w) - layer.affine(U, v)

    integrator = cn.Irksome(BackwardEuler(), TIGHT, images=images)
    return cn.Network(
        operators, cn.ControlSpace(0.5, 2, operators, 2), dynamics=cn.UserDynamics(residual, parts),
        integrator=integrator)


def compare(term, **settings):
    together, alone = network_of(term, 3, **settings), network_of(term, 1, **settings)
    m = together.control_space.random(np.random.default_rng(1), 0.2)
    mine = alone.control_space.random(np.random.default_rng(1), 0.2)
    Y0 = Function(together.state_space(3))
    Y0.dat.data_wo[:] = np.random.default_rng(2).random(Y0.dat.data_ro.shape)
    Y = cn.propagate(together, m, Y0).dat.data_ro.reshape(-1, 2, 3)
    for image in range(3):
        one = Function(alone.state_space(1))
        one.dat.data_wo[:] = Y0.dat.data_ro.reshape(-1, 2, 3)[:, :, image]
        found = cn.propagate(alone, mine, one).dat.data_ro.reshape(-1, 2)
        np.testing.assert_allclose(Y[:, :, image], found, rtol=0, atol=1e-11)
    return Y


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__name__)
def test_images_together_are_as_each_alone(term):
    Y = compare(term)
    assert np.abs(Y - compare(None)).max() > 1e-3  # the term does something


def test_on_triangles_in_two_parts():
    compare(coefficients, parts=2, quadrilateral=False)


def test_a_coefficient_may_change_later():
    kappa = []

    def term(mesh):
        kappa.append(Function(FunctionSpace(mesh, "DG", 0)).assign(0.1))
        return lambda Y, v: kappa[-1] * inner(grad(Y), grad(v)) * dx

    finals = []
    for first, second in ((0.1, 0.5), (0.5, 0.5)):
        network = network_of(term, 2)
        m, Y0 = network.control_space.random(np.random.default_rng(1), 0.2), Function(network.state_space(2))
        Y0.dat.data_wo[:] = np.random.default_rng(2).random(Y0.dat.data_ro.shape)
        for value in (first, second):
            kappa[-1].assign(value)
            Y = cn.propagate(network, m, Y0).dat.data_ro.copy()
        finals.append(Y)
    np.testing.assert_allclose(*finals, rtol=0, atol=1e-13)


def test_derivatives_with_a_coefficient_and_a_boundary(make_case, annotation, assert_taylor):
    def residual(Y, v, layer):
        kappa = numbers(FunctionSpace(Y.ufl_domain(), "DG", 0))
        term = inner(Dt(Y), v) * lumped_dx() + kappa * inner(grad(Y), grad(v)) * dx + inner(Y, v) * ds
        return term - layer.affine(Y, v)

    case = make_case(
        "quadrilateral", images=2, dynamics=cn.UserDynamics(residual), layers=2, cells=2, degree=1, control_cells=2,
        T=0.5, operators=cn.low_order_operators, integrator=cn.Irksome(BackwardEuler(), TIGHT, images=2))
    check_derivatives(case, annotation, assert_taylor)


class TestRefusals:
    def build(self, term, images=2):
        network_of(term, images)

    def test_a_coefficient_of_another_mesh(self):
        other = numbers(FunctionSpace(UnitSquareMesh(2, 2), "DG", 0))
        with pytest.raises(ValueError, match=r"must be on the network's mesh, received one on .*interpolate it"):
            self.build(lambda mesh: lambda Y, v: other * inner(Y, v) * dx(domain=mesh))

    def test_a_coefficient_in_a_space_of_fluxes(self):
        with pytest.raises(ValueError, match=r"scalar, vector or tensor of scalar elements.*images=1"):
            self.build(lambda mesh: lambda Y, v: inner(dot(grad(Y), Function(FunctionSpace(mesh, "RTCF", 1))), v) * dx)

    def test_a_quantity_of_facets(self):
        with pytest.raises(ValueError, match=r"cannot have FacetArea.*images=1"):
            self.build(lambda mesh: lambda Y, v: FacetArea(mesh) * inner(Y, v) * ds)

    def test_an_integral_over_another_mesh(self):
        other = UnitSquareMesh(2, 2)
        with pytest.raises(ValueError, match="integrals dx, ds and dS over the network's mesh"):
            self.build(lambda mesh: lambda Y, v: inner(Y, v) * dx(domain=other))


def test_what_is_refused_for_several_images_is_stepped_alone():
    network = network_of(lambda mesh: lambda Y, v: FacetArea(mesh) * inner(Y, v) * ds, 1)
    Y0 = Function(network.state_space(1)).assign(1.0)
    assert np.isfinite(cn.propagate(network, network.control_space.zero(), Y0).dat.data_ro).all()
