"""Reaction-diffusion with the IMEX step: the direct solve, the sweeps and their derivatives."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
import ufl
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace, Mesh, RectangleMesh, assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional
from support.derivatives import agree, check_derivatives, check_derivatives_whatever_the_memory
from support.networks import small_network, small_problem
from support.ranks import SQUARE, assert_equal, propagation_numbers

import ctrlnet as cn
from ctrlnet.dynamics.activations import Activation
from ctrlnet.kernels.code.arrays import aligned_zeros
from ctrlnet.kernels.code.precision import DOUBLE, SINGLE
from ctrlnet.kernels.solves.substitution import DirectSolve, gathered
from ctrlnet.network.plain import layer_controls, layer_derivatives, propagate_plain
from ctrlnet.operators import Operators

CELLS = ["interval", "quadrilateral", "triangle", "hexahedron", "tetrahedron"]
softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))
IMEX = dict(dynamics=cn.ReactionDiffusion(nu=0.4), integrator=cn.IMEX())


@pytest.mark.parametrize("precision", [DOUBLE, SINGLE], ids=lambda p: p.name)
@pytest.mark.parametrize("kind", CELLS)
def test_direct_solve_is_the_inverse_and_its_transpose(space, kind, precision):
    """For every width of a block of columns, against a dense solve."""
    L = gathered(Operators(space(kind, 3, 0.5, COMM_SELF), [cn.laplacian]).matrices[0])
    G = sp.eye_array(L.shape[0], format="csr") - 0.3 * L
    lanes = precision.lanes
    solve = DirectSolve(G, L.shape[0], precision, COMM_SELF)
    rng = np.random.default_rng(0)
    for vectors in (1, 2, 3, 4, 8, 15):
        right = rng.standard_normal((L.shape[0], 1, vectors * lanes))
        for transposed in (False, True):
            field = aligned_zeros(right.shape, precision.dtype)
            field[:] = right
            solve(field, transposed)
            matrix = G.toarray().T if transposed else G.toarray()
            expected = np.linalg.solve(matrix, right[:, 0])
            tolerance = 50 * np.finfo(precision.dtype).eps * np.abs(expected).max() * np.linalg.cond(matrix)
            np.testing.assert_allclose(field[:, 0], expected, rtol=0, atol=tolerance)


def test_a_matrix_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="not positive: the smallest pivot is -1"):
        DirectSolve(-sp.eye_array(3, format="csr"), 3, DOUBLE, COMM_SELF)


def test_constants_are_kept_and_extremes_are_not_exceeded(make_network, normal_function):
    """Without controls a step is diffusion: it keeps the mean in the lumped mass, and obeys the maximum principle."""
    net = make_network("quadrilateral", layers=2, **IMEX)
    s, b = net.control_space.zero()
    Y0 = normal_function(net.state_space(1), np.random.default_rng(0))
    Y = cn.propagate(net, (s, b), Y0)
    mass = net.operators.mass[:, None]
    np.testing.assert_allclose((mass * Y.dat.data_ro).sum(axis=0), (mass * Y0.dat.data_ro).sum(axis=0), rtol=1e-13)
    assert Y.dat.data_ro.max() < Y0.dat.data_ro.max() and Y.dat.data_ro.min() > Y0.dat.data_ro.min()
    flat = Function(Y0.function_space()).assign(0.7)
    np.testing.assert_allclose(cn.propagate(net, (s, b), flat).dat.data_ro, 0.7, rtol=1e-13)


def test_cosines_decay_by_their_eigenvalue():
    r"""A cosine is an eigenfunction: after N steps it has the factor :math:`(1 + h\nu\mu)^{-N}`."""
    cells, side, nu, steps, T = 12, 6.0, 0.7, 3, 2.0
    V = FunctionSpace(RectangleMesh(cells, cells, side, side, quadrilateral=True), "CG", 1)
    D = cn.low_order_operators(V)
    net = cn.Network(D, cn.ControlSpace(T, 1, D, 1), steps, cn.ReactionDiffusion(nu), cn.IMEX())
    x, y = ufl.SpatialCoordinate(V.mesh())
    Y0 = Function(V).interpolate(ufl.cos(ufl.pi * x / side) * ufl.cos(2 * ufl.pi * y / side))
    start = Function(net.state_space(1))
    start.dat.data[:] = Y0.dat.data_ro.reshape(start.dat.data_ro.shape)
    Y = cn.propagate(net, net.control_space.zero(), start)
    width = side / cells
    mu = sum((2 - 2 * np.cos(k * np.pi * width / side)) / width**2 for k in (1, 2))
    factor = (1 + T / steps * nu * mu) ** -steps
    np.testing.assert_allclose(Y.dat.data_ro, factor * start.dat.data_ro, rtol=0, atol=1e-13)


def test_large_diffusivity_is_stable_where_the_explicit_step_is_not(make_network, normal_function):
    """h nu / width^2 = 600: an explicit step would enlarge the highest mode by over 4000."""
    net = make_network("quadrilateral", cells=6, layers=3, T=3.0, dynamics=cn.ReactionDiffusion(600.0),
                       integrator=cn.IMEX())
    Y0 = normal_function(net.state_space(1), np.random.default_rng(0))
    Y = cn.propagate(net, net.control_space.zero(), Y0)
    assert np.abs(Y.dat.data_ro).max() <= np.abs(Y0.dat.data_ro).max()


def test_a_network_without_diffusion_is_the_limit(make_case):
    """As nu -> 0 the state tends to that of Residual with ForwardEuler, at first order in nu."""
    plain = make_case("triangle")
    reference = cn.propagate(plain.network, plain.m, plain.Y0).dat.data_ro
    errors = []
    for nu in (1e-4, 5e-5):
        net = cn.Network(
            plain.network.operators, plain.network.control_space, None, cn.ReactionDiffusion(nu), cn.IMEX())
        Y = cn.propagate(net, plain.m, plain.Y0)
        errors.append(np.abs(Y.dat.data_ro - reference).max())
    assert errors[0] < 0.1 and abs(np.log2(errors[0] / errors[1]) - 1) < 0.02


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("interval", cn.tanh), ("quadrilateral", softplus), ("triangle", cn.tanh)],
)
def test_plain_route(make_case, annotation, kind, activation):
    """State, gradient and Hessian product of the same steps in native Firedrake, taped by pyadjoint."""
    case = make_case(
        kind, layers=2, operators=cn.low_order_operators, dynamics=cn.ReactionDiffusion(0.4, activation),
        integrator=cn.IMEX())
    net = case.network
    points = (case.s, case.b, case.Y0)
    with annotation() as tape:
        Y = cn.propagate(net, points[:-1], points[-1])
        fused = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in points], tape=tape)
        final = Y.dat.data_ro.copy()
    s_layers, b_layers = layer_controls(net, case.m)
    with annotation() as tape:
        Y = propagate_plain(net, s_layers, b_layers, case.Y0)
        J = assemble(inner(Y, Y) ** 2 * dx)
        plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers, case.Y0)], tape=tape)
    agree(final, Y.dat.data_ro, "Y(T)")
    ds, db, dY0 = case.perturbation()
    ds_layers, db_layers = layer_controls(net, (ds, db))
    results = {
        "gradient": (fused.derivative(), plain.derivative()),
        "Hessian product": (fused.hessian([ds, db, dY0]), plain.hessian([*ds_layers, *db_layers, dY0])),
    }
    for what, (mine, oracle) in results.items():
        *layers, field = oracle
        expected = (*net.cofunctions(layer_derivatives(net, layers[: net.steps], layers[net.steps :])), field)
        for name, a, e in zip(("s", "b", "Y0"), mine, expected, strict=True):
            agree(a.dat.data_ro, e.dat.data_ro, f"{what} {name}")





@pytest.mark.parametrize("kind", CELLS)
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, kind):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    case = make_case(kind, images=3, cells=2, **IMEX)
    check_derivatives(case, annotation, assert_taylor)


def test_single_precision(make_case):
    states = []
    for precision in ("double", "single"):
        case = make_case("triangle", precision=precision, **IMEX)
        states.append(cn.propagate(case.network, case.m, case.Y0).dat.data_ro)
    difference = np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[0])
    assert 0 < difference < 50 * np.finfo(np.float32).eps


def test_training_problem_with_any_memory(assert_taylor):
    """The gradient of a training problem is the same with stored, recomputed and checkpointed states."""
    network = small_network(layers=5, **IMEX)
    check_derivatives_whatever_the_memory(network, assert_taylor)


def test_it_learns_on_one_mesh_and_runs_on_another():
    problem = small_problem(network=small_network(**IMEX))
    result = cn.train_level(problem, problem.controls(np.random.default_rng(0))[:2], iterations=8)
    assert problem.accuracy(problem.average.sample, result.controls) > 0.9
    scores = []
    for cells in (6, 12, 24, 48):
        network = problem.network.on(FunctionSpace(RectangleMesh(cells, cells, 6.0, 6.0, quadrilateral=True), "CG", 1))
        moved = cn.SampleAverage(problem.readout.on(network), problem.average.sample)
        scores.append(moved.scores(network.layers(result.controls), *problem.readout.arrays(result.controls)))
    changes = [np.linalg.norm(a - b) for a, b in zip(scores, scores[1:], strict=False)]
    assert changes[1] < 0.7 * changes[0] and changes[2] < 0.7 * changes[1], "the scores converge as the mesh is refined"


@pytest.mark.parametrize("nu", [0.0, -1.0, float("nan"), float("inf")])
def test_the_diffusivity_is_positive(nu):
    with pytest.raises(ValueError, match=r"nu must be positive and finite, received .*Residual\(\)"):
        cn.ReactionDiffusion(nu)


def test_dynamics_without_diffusion_are_refused(make_network):
    with pytest.raises(ValueError, match=r"Residual dynamics have none; it fits ReactionDiffusion"):
        make_network("triangle", integrator=cn.IMEX())


@pytest.mark.parallel(nprocs=[2, 3])
def test_same_numbers_on_any_number_of_ranks(annotation):
    """State, gradient and Hessian product, on a structured and an unstructured mesh and one smaller than the ranks."""

    def numbers(mesh):
        V = FunctionSpace(mesh, "CG", 1)
        D = cn.low_order_operators(V)
        network = cn.Network(D, cn.ControlSpace(0.6, 3, D, 2), **IMEX)
        return propagation_numbers(network, annotation)

    for build in (
        lambda comm: RectangleMesh(7, 6, 3.5, 3.0, quadrilateral=True, comm=comm),
        lambda comm: RectangleMesh(2, 1, 3.5, 3.0, quadrilateral=True, comm=comm),
        lambda comm: Mesh(str(SQUARE), comm=comm),
    ):
        assert_equal(numbers(build(COMM_WORLD)), numbers(build(COMM_SELF)))


def test_a_step_costs_at_most_twice_the_explicit_one():
    """Forward and gradient at 29x29 nodes, processor time, interleaved, medians."""
    V = FunctionSpace(RectangleMesh(28, 28, 28.0, 28.0, quadrilateral=True), "CG", 1)
    D = cn.low_order_operators(V)
    controls = cn.ControlSpace(4.0, 4, D, 4)
    s, b = controls.random(np.random.default_rng(0))
    seconds = ([], [])
    networks = [cn.Network(D, controls), cn.Network(D, controls, **IMEX)]
    for _ in range(15):
        for network, taken in zip(networks, seconds, strict=True):
            sweep, h = network.sweep, network.step_sizes
            values = network.layers((s, b))
            trajectory, lam = sweep.trajectory(4, 64), sweep.field(64)
            began = time.process_time()
            sweep.forward(values, h, trajectory)
            sweep.adjoint(values, h, trajectory, lam)
            taken.append(time.process_time() - began)
    ratio = np.median(seconds[1]) / np.median(seconds[0])
    assert ratio <= 2.0, f"the IMEX step costs {ratio:.2f} explicit ones"
