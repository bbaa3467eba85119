"""Reaction-diffusion whose diffusivity is a control: the plain route as its oracle, derivatives, training, ranks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace, RectangleMesh, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional
from support.derivatives import agree, check_derivatives, check_derivatives_whatever_the_memory
from support.networks import small_network, small_problem, square
from support.ranks import assert_equal

import ctrlnet as cn
from ctrlnet.kernels.solves.substitution import gathered
from ctrlnet.network.plain import layer_controls, layer_derivatives, propagate_plain
from ctrlnet.operators import Operators
from ctrlnet.optimise import Limits, ProjectedFunctional, SchurGaussNewton, TaoOptimiser

LEARNED = dict(dynamics=cn.ReactionDiffusion(0.4, learned=True), integrator=cn.IMEX())


def test_without_a_control_it_is_the_fixed_diffusivity(make_case):
    case = make_case("triangle", **LEARNED)
    r = Function(case.m.log_diffusivity.function_space()).assign(np.log(1.5))
    Y = cn.propagate(case.network, case.m.replace(log_diffusivity=r), case.Y0).dat.data_ro
    fixed = make_case("triangle", dynamics=cn.ReactionDiffusion(0.6), integrator=cn.IMEX())
    fixed.b.dat.data[:] = case.b.dat.data_ro
    fixed.s.dat.data[:] = case.s.dat.data_ro
    fixed.Y0.dat.data[:] = case.Y0.dat.data_ro
    expected = cn.propagate(fixed.network, fixed.m, fixed.Y0).dat.data_ro
    np.testing.assert_allclose(Y, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_value_is_that_of_dense_matrices(make_case):
    """Y <- (I - h nu exp(r(t)) L)^{-1} (Y + h tanh(K Y + b)) with another r in every step."""
    case = make_case("quadrilateral", degree=1, **LEARNED)
    net = case.network
    L = gathered(Operators(net.space, [cn.laplacian]).matrices[0]).toarray()
    D = np.array([m[:, :] for m in net.operators.matrices])
    layers = net.layers(case.m)
    S, b, r = layers.coefficients, layers.biases, layers.parameters[:, 0]
    assert np.ptp(r) > 0.05
    Y = case.Y0.dat.data_ro.reshape(-1, 2, 2)
    for k, h in enumerate(net.step_sizes):
        Z = np.einsum("joc,jnm,mci->noi", S[k], D, Y, optimize=True) + b[k, :, None]
        G = sp.eye_array(len(L)) - h * 0.4 * np.exp(r[k]) * L
        Y = np.linalg.solve(G, (Y + h * np.tanh(Z)).reshape(len(L), -1)).reshape(Y.shape)
    agree(cn.propagate(net, case.m, case.Y0).dat.data_ro, Y.reshape(len(L), -1), "Y(T)")


def test_plain_route(make_case, annotation):
    """Gradient and Hessian product of the same steps in native Firedrake, taped by pyadjoint."""
    case = make_case("triangle", layers=2, operators=cn.low_order_operators, **LEARNED)
    net, points = case.network, case.points
    with annotation() as tape:
        Y = cn.propagate(net, points[:-1], points[-1])
        fused = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in points], tape=tape)
    s_layers, b_layers = layer_controls(net, case.m)
    with annotation() as tape:
        Y = propagate_plain(net, s_layers, b_layers, case.Y0)
        J = assemble(inner(Y, Y) ** 2 * dx)
        plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers, case.Y0)], tape=tape)
    *dm, dY0 = case.perturbation()
    ds_layers, db_layers = layer_controls(net, dm)
    for what, mine, (*layers, field) in (
        ("gradient", fused.derivative(), plain.derivative()),
        ("Hessian product", fused.hessian([*dm, dY0]), plain.hessian([*ds_layers, *db_layers, dY0])),
    ):
        expected = (*net.cofunctions(layer_derivatives(net, layers[: net.steps], layers[net.steps :])), field)
        for name, a, e in zip((*case.m.names, "Y0"), mine, expected, strict=True):
            agree(a.dat.data_ro, e.dat.data_ro, f"{what} {name}")


@pytest.mark.parametrize("activation", [cn.tanh, cn.smoothed_relu(0.5)], ids=lambda a: a.name)
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, activation):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    dynamics = cn.ReactionDiffusion(0.4, activation, learned=True)
    case = make_case("quadrilateral", images=3, cells=2, dynamics=dynamics, integrator=cn.IMEX())
    # No second derivative where the pieces of the rectifier meet.
    check_derivatives(case, annotation, assert_taylor if activation is cn.tanh else None)


def test_training_problem_with_any_memory(assert_taylor):
    """The gradient is the same with stored, recomputed and checkpointed states, and exact."""
    network = small_network(layers=5, **LEARNED)
    check_derivatives_whatever_the_memory(network, assert_taylor)


def test_training_learns_the_diffusivity_on_one_mesh_and_over_two():
    """From a diffusivity far too large, which blurs the images, training goes to a smaller one and does better."""
    blurred = dict(dynamics=cn.ReactionDiffusion(4.0, learned=True), integrator=cn.IMEX())
    problem = small_problem(network=small_network(**blurred), control_size=1e-4)
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0)), iterations=15)
    fixed = small_problem(
        network=small_network(dynamics=cn.ReactionDiffusion(4.0), integrator=cn.IMEX()), control_size=1e-4)
    other = cn.train_level(fixed, fixed.controls(np.random.default_rng(0)), iterations=15)
    r = problem.network.layers(result.controls).parameters[:, 0]
    assert (r < -0.1).all(), f"log nu / nu0 = {r}"
    assert result.history.last.objective < 0.95 * other.history.last.objective

    finer = problem.network.control_space.finer()
    network = problem.network.with_depth(finer).on(FunctionSpace(square(12), "CG", 1))
    deep = cn.TrainingProblem(problem.readout.on(network), problem.average.sample, control_size=1e-4,
                              weights_gradient=1e-2, weights_size=1e-2)
    start = problem.controls(np.random.default_rng(0))
    _, last = cn.train_multiscale([problem, deep], start, iterations=[5, 2])
    assert last.controls.log_diffusivity.function_space() == finer.control_set["log_diffusivity"].space
    assert (network.layers(last.controls).parameters != 0).all()


def test_quasi_newton_with_the_explicit_matrix():
    """Of all images and directions, the matrix's last column is the Gauss-Newton product with the last r."""
    problem = small_problem(network=small_network(**LEARNED))
    functional = ProjectedFunctional(problem, problem.controls(np.random.default_rng(0)))
    coordinates = problem.coordinates(functional.names)
    schur = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 60, 3)
    optimiser = TaoOptimiser(functional, limits=Limits(6), coordinates=coordinates, initial_hessian=schur)
    optimiser.solve()
    objective = optimiser.history.column("objective")
    assert objective[-1] < 0.9 * objective[0]
    direction = coordinates.functions(np.eye(coordinates.size)[-1])  # of the last r
    schur = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 10**6, 3, damping=0.0)
    schur.refresh()
    product = coordinates.dual_array(functional.gauss_newton(direction))
    assert np.linalg.norm(schur.matrix[:, -1] - product) < 0.05 * np.linalg.norm(product)


@pytest.mark.parametrize("scheme", [cn.ForwardEuler(), cn.RungeKutta(), cn.BackwardEuler(), cn.ImplicitMidpoint()])
def test_other_schemes_take_a_learned_diffusivity_too(make_case, scheme):
    """With r = log 1.5 the state is that of a fixed diffusivity 1.5 nu; derivatives: tests of terms."""
    settings = dict(T=0.15, degree=1, integrator=scheme)
    case = make_case("triangle", dynamics=cn.ReactionDiffusion(0.4, learned=True), **settings)
    case.m.log_diffusivity.dat.data[:] = np.log(1.5)
    fixed = make_case("triangle", dynamics=cn.ReactionDiffusion(0.6), **settings)
    fixed.b.dat.data[:] = case.b.dat.data_ro
    fixed.s.dat.data[:] = case.s.dat.data_ro
    fixed.Y0.dat.data[:] = case.Y0.dat.data_ro
    expected = cn.propagate(fixed.network, fixed.m, fixed.Y0).dat.data_ro
    np.testing.assert_allclose(
        cn.propagate(case.network, case.m, case.Y0).dat.data_ro, expected, rtol=0,
        atol=1e-12 * np.abs(expected).max())


def test_bad_settings_are_refused():
    V = FunctionSpace(square(3), "CG", 1)
    D = cn.low_order_operators(V)
    with pytest.raises(ValueError, match=r"learn 1 parameter\(s\).*has 0.*parameters=\('log_diffusivity',\)\)"):
        cn.Network(D, cn.ControlSpace(1.0, 2, D, 2), **LEARNED)
    with pytest.raises(ValueError, match=r"Residual dynamics learn 0 parameter\(s\).*has 1"):
        cn.Network(D, cn.ControlSpace(1.0, 2, D, 2, parameters=("log_diffusivity",)))
    for parameters in (-1, 1, "log_diffusivity"):
        with pytest.raises(ValueError, match=f"parameters are a sequence of names.*received {parameters!r}"):
            cn.ControlSpace(1.0, 2, D, 2, parameters=parameters)
    network = small_network(**LEARNED)
    m = network.control_space.zero()
    m.log_diffusivity.dat.data[:] = 30.0
    with pytest.raises(cn.PropagationError, match=r"nu exp\(r\) left its range: received r = 30"):
        cn.propagate(network, m, Function(network.state_space(1)))


@pytest.mark.parallel(nprocs=[2, 3])
def test_same_numbers_on_any_number_of_ranks():
    def numbers(comm):
        D = cn.low_order_operators(FunctionSpace(RectangleMesh(6, 6, 6.0, 6.0, comm=comm), "CG", 1))
        network = cn.Network(D, cn.ControlSpace(1.5, 3, D, 2, parameters=("log_diffusivity",)), **LEARNED)
        problem = small_problem(network=network)
        point = problem.controls(np.random.default_rng(0)).restricted(network.control_set.names)
        for control in point[1:]:
            control.dat.data[:] = 0.3 * np.random.default_rng(1).standard_normal(control.dat.data_ro.shape)
        functional = ProjectedFunctional(problem, point)
        value = float(functional(point))
        gradient, product = functional.derivative(), functional.hessian(point)
        result = cn.train_level(problem, point, iterations=3)
        out = {"J": np.array(value)}
        for name in ("b", "log_diffusivity"):
            out |= {f"d {name}": gradient[name].dat.data_ro.copy(), f"H {name}": product[name].dat.data_ro.copy(),
                    name: result.controls[name].dat.data_ro.copy()}
        return out

    assert_equal(numbers(COMM_WORLD), numbers(COMM_SELF), 1e-8)
