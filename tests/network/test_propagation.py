"""Propagation as one block of pyadjoint's tape: Taylor tests, dot products, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from firedrake import Function, FunctionSpace, UnitIntervalMesh, VectorFunctionSpace, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional
from pyadjoint import get_working_tape
from support.networks import small_network

import ctrlnet as cn
from ctrlnet import Activation, ControlSpace, FixedOpening, Network, low_order_operators, propagate
from ctrlnet.network.propagation import PropagationBlock

CELLS = ["quadrilateral", "triangle", "interval", "hexahedron"]
CHOICES = {"s": [0], "b": [1], "Y0": [2], "together": [0, 1, 2]}
softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))


def functional(case, annotation, chosen):
    """A quartic of Y(T), so that its own Hessian depends on the state, as a functional of the chosen controls."""
    controls = [case.s, case.b, case.Y0]
    with annotation() as tape:
        Y = propagate(case.network, controls[:-1], controls[-1])
        J = assemble((inner(Y, Y) + 0.1 * inner(Y, Y) ** 2) * dx)
        return ReducedFunctional(J, [Control(controls[k]) for k in chosen], tape=tape)


@pytest.mark.parametrize("which", CHOICES)
@pytest.mark.parametrize("kind", CELLS)
def test_taylor(make_case, annotation, assert_taylor, kind, which):
    """Remainders of order 2 with the gradient and 3 with the Hessian."""
    case = make_case(kind)
    _taylor(case, annotation, assert_taylor, CHOICES[which])


@pytest.mark.parametrize("which", CHOICES)
def test_taylor_of_an_activation_that_keeps_its_argument(make_case, annotation, assert_taylor, which):
    _taylor(make_case("quadrilateral", activation=softplus), annotation, assert_taylor, CHOICES[which])


@pytest.mark.parametrize(("degree", "control_cells"), [(0, 2), (1, 2), (1, 4)])
def test_taylor_when_steps_are_not_control_cells(make_case, annotation, assert_taylor, degree, control_cells):
    case = make_case("triangle", layers=5, degree=degree, control_cells=control_cells)
    _taylor(case, annotation, assert_taylor, CHOICES["together"])


def _taylor(case, annotation, assert_taylor, chosen):
    start = [(case.s, case.b, case.Y0)[k] for k in chosen]
    direction = [case.perturbation()[k] for k in chosen]
    assert_taylor(functional(case, annotation, chosen), start, direction)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_adjoint_tangent_dot_product(make_case, kind, images):
    """<w, F' d> = <F'^* w, d> to 1e-12 relative, through the block's own interface."""
    case = make_case(kind, images)
    block = PropagationBlock(case.network, case.m, case.Y0)
    inputs, direction = [case.s, case.b, case.Y0], list(case.perturbation())
    rng = np.random.default_rng(11)
    weight = Function(case.Y0.function_space()).assign(1.0).riesz_representation("l2")
    weight.dat.data[:] = rng.standard_normal(weight.dat.data_ro.shape)
    gradient = block.prepare_evaluate_adj(inputs, [weight], None)
    for chosen in CHOICES.values():
        parts = [d if k in chosen else None for k, d in enumerate(direction)]
        change = block.evaluate_tlm_component(inputs, parts, None, 0)
        left = weight.dat.data_ro.ravel() @ change.dat.data_ro.ravel()
        right = sum(gradient[k].dat.data_ro.ravel() @ direction[k].dat.data_ro.ravel() for k in chosen)
        scale = np.linalg.norm(weight.dat.data_ro) * np.linalg.norm(change.dat.data_ro)
        assert abs(left - right) <= 1e-12 * scale, f"<w, F'd> = {left}, <F'*w, d> = {right}"


def test_derivatives_are_cofunctions_of_the_dual_spaces(make_case, annotation):
    case = make_case("triangle")
    for derivative, control in zip(
        functional(case, annotation, [0, 1, 2]).derivative(), (case.s, case.b, case.Y0), strict=True
    ):
        assert derivative.function_space() == control.function_space().dual()


def test_images_do_not_see_each_other(make_case):
    """A state of three images propagates as three states of one; padding to SIMD blocks leaves no trace."""
    case = make_case("quadrilateral", 3)
    net = case.network
    together = propagate(net, case.m, case.Y0).dat.data_ro.reshape(-1, net.features, 3)
    values = case.Y0.dat.data_ro.reshape(-1, net.features, 3)
    for i in range(3):
        Y0 = Function(net.state_space(1))
        Y0.dat.data[:] = values[:, :, i].reshape(Y0.dat.data_ro.shape)
        alone = propagate(net, case.m, Y0).dat.data_ro.reshape(-1, net.features)
        np.testing.assert_allclose(alone, together[:, :, i], rtol=1e-14, atol=1e-14)


def test_zero_controls_keep_the_state(make_case):
    """sigma(0) = 0 for tanh: a network without controls is the identity."""
    case = make_case("interval")
    s, b = case.network.control_space.zero()
    np.testing.assert_array_equal(propagate(case.network, (s, b), case.Y0).dat.data_ro, case.Y0.dat.data_ro)


def test_single_precision_takes_the_same_interface(make_case, annotation):
    """Gradients agree to the rounding of float32, eps times the terms of a sum and the layers."""
    double, single = make_case("quadrilateral"), make_case("quadrilateral", precision="single")
    bound = 3 * 9 * 8 * np.finfo(np.float32).eps
    gradients = [functional(case, annotation, [0, 1, 2]).derivative() for case in (double, single)]
    for one, other in zip(*gradients, strict=True):
        difference = np.linalg.norm(one.dat.data_ro - other.dat.data_ro)
        assert 0 < difference < bound * np.linalg.norm(one.dat.data_ro)


def test_the_tape_holds_one_block(make_case, annotation):
    case = make_case("interval")
    with annotation() as tape:
        propagate(case.network, case.m, case.Y0)
        assert [type(b) for b in tape.get_blocks()] == [PropagationBlock]
    propagate(case.network, case.m, case.Y0)
    assert not get_working_tape().get_blocks(), "without annotation nothing may be recorded"


def test_a_state_on_another_mesh_is_refused(make_case, make_network):
    case, other = make_case("triangle"), make_network("triangle", cells=4)
    with pytest.raises(ValueError, match=r"Y0 lives on .*, the operators on .* Use network\.on\(space\)"):
        propagate(case.network, case.m, Function(other.state_space(1)))
    moved = case.network.on(other.space)
    result = propagate(moved, case.m, Function(other.state_space(2)))
    assert result.function_space().mesh() is moved.space.mesh()


@pytest.mark.parametrize(("degree", "components"), [(1, 3), (2, 4)])
def test_a_state_of_another_shape_is_refused(make_case, degree, components):
    case = make_case("triangle")
    wrong = Function(VectorFunctionSpace(case.network.space.mesh(), "CG", degree, dim=components))
    with pytest.raises(ValueError, match=rf"Y0 has {components} components on \d+ nodes; a state needs"):
        propagate(case.network, case.m, wrong)


class TestNetwork:
    """What a network refuses before anything is computed."""

    def setup_method(self):
        self.D = low_order_operators(FunctionSpace(UnitIntervalMesh(3), "CG", 1))

    def test_counts_of_operators_must_agree(self):
        with pytest.raises(ValueError, match=r"built for 5 operators, but 3 are given \(1, dx, laplacian\)"):
            Network(self.D, ControlSpace(1.0, 2, 5, 2))

    def test_zero_layers(self):
        with pytest.raises(ValueError, match=r"number of layers, at least one, or their times; received steps=0"):
            Network(self.D, ControlSpace(1.0, 2, self.D, 2), steps=0)

    @pytest.mark.parametrize("matrix", [[1.0], [1.0, 0.0, 0.0], [[1.0, 0.0]]])
    def test_the_opening_gives_as_many_features_as_the_controls_have(self, matrix):
        given = np.shape(matrix)[0]
        with pytest.raises(ValueError, match=rf"opening gives {given} features, the controls have 2"):
            Network(self.D, ControlSpace(1.0, 2, self.D, 2), opening=FixedOpening(matrix))

    def test_precision(self):
        with pytest.raises(ValueError, match="precision must be 'double' or 'single', received 'quad'"):
            Network(self.D, ControlSpace(1.0, 2, self.D, 2), precision="quad")

    def test_dynamics_without_a_sweep(self):
        class Other:
            pass

        with pytest.raises(ValueError, match="no sweep for Other dynamics"):
            Network(self.D, ControlSpace(1.0, 2, self.D, 2), dynamics=Other())

    def test_depth_and_mesh_can_be_changed(self):
        network = Network(self.D, ControlSpace(1.0, 2, self.D, 2), opening=FixedOpening([1.0, -1.0]))
        deeper = network.with_depth(steps=5)
        assert (deeper.steps, deeper.step_sizes.sum()) == (5, pytest.approx(1.0))
        assert deeper.operators is network.operators and deeper.opening is network.opening
        moved = deeper.on(FunctionSpace(UnitIntervalMesh(6), "CG", 1))
        assert moved.operators.nodes == 7 and moved.steps == 5 and moved.control_space is network.control_space


@pytest.mark.parametrize("steps", [1.5, "3", float("nan")])
def test_a_number_of_layers_that_is_none_is_refused(steps):
    with pytest.raises(ValueError, match="a whole number of layers"):
        small_network().with_depth(steps=steps)


@pytest.mark.parametrize(("setting", "message"), [
    (dict(integrator="euler"), "An integrator must be an object such as ForwardEuler"),
    (dict(integrator=cn.ForwardEuler), "An integrator must be an object"),
    (dict(dynamics=cn.Residual), "Dynamics must be an object such as Residual"),
    (dict(opening="first"), "An opening must be an object such as FixedOpening")])
def test_what_is_no_part_of_a_network(setting, message):
    operators = small_network().operators
    with pytest.raises(ValueError, match=message):
        cn.Network(operators, cn.ControlSpace(1.0, 2, operators, 2), **setting)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_state_that_is_not_finite_is_an_error(value):
    network = small_network(dynamics=cn.Residual(cn.identity))
    m, Y0 = network.control_space.random(np.random.default_rng(0)), Function(network.state_space(1)).assign(1.0)
    m.s.assign(value)
    with pytest.raises(cn.PropagationError, match="is not finite after 3 layers"):
        cn.propagate(network, m, Y0)
