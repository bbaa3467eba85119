"""The same numbers on any number of ranks: each test also solves the problem of one rank and compares."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Ensemble,
    FunctionSpace,
    Mesh,
    RectangleMesh,
    assemble,
    dx,
    inner,
)
from firedrake.adjoint import Control, ReducedFunctional
from support.ranks import (
    LAYERS,
    SQUARE,
    C,
    K,
    assert_equal,
    build_network,
    controls_of,
    in_order_of_place,
    on_ranks,
    smooth,
)

from ctrlnet import (
    ControlSpace,
    Network,
    Readout,
    Sample,
    TrainingProblem,
    low_order_operators,
    propagate,
    train_level,
)
from ctrlnet.network.plain import layer_controls, layer_derivatives, propagate_plain


def build_problem(comm, quadrilateral, coarse, ensemble=None, **time):
    network = build_network(comm, quadrilateral, **time)
    space = None
    if coarse:
        space = FunctionSpace(RectangleMesh(2, 2, 3.5, 3.0, quadrilateral=quadrilateral, comm=comm), "CG", 1)
    rng = np.random.default_rng(3)
    # More images than one block of the kernels, so that ranks share some blocks and not others.
    sample = Sample(rng.random((35, 8, 7)), rng.integers(0, K, 35), K)
    problem = TrainingProblem(
        Readout(network, K, space), sample, control_size=0.1, control_roughness=0.2, weights_gradient=0.1,
        weights_size=0.05, ensemble=ensemble,
    )
    s, b = controls_of(network)
    W = smooth(problem.readout.weights_space)
    beta = problem.readout.zero().beta
    beta.dat.data[:] = [0.1, -0.2, 0.3]
    return problem, (s, b, W, beta)


def numbers(comm, *settings, **time):
    """J, the gradient, a Hessian product, the scores and the accuracy."""
    problem, point = build_problem(comm, *settings, **time)
    functional = problem.reduced_functional(point)
    out = {"J": np.array(float(functional(list(point))))}
    gradient = functional.derivative()
    direction = [p._ad_mul(0.5) for p in point[:2]]
    direction += [smooth(problem.readout.weights_space, 1.0), point[3]]
    product = functional.hessian(direction)
    for what, parts in (("dJ", gradient), ("H d", product)):
        for name, part in zip(("s", "b", "W", "beta"), parts, strict=True):
            in_space = name == "W"
            out[f"{what} {name}"] = (
                in_order_of_place(part, problem.readout.space) if in_space else part.dat.data_ro.copy()
            )
    arrays = problem.point(point)
    out["scores"] = problem.average.scores(*arrays)
    out["accuracy"] = np.array(problem.average.accuracy(*arrays))
    return out


def trained(comm, ensemble):
    """The problem after some steps of quasi-Newton with the classifier projected out, and its controls."""
    problem, (s, b, _, _) = build_problem(comm, True, True, ensemble)
    result = train_level(problem, (s, b), iterations=3)
    return problem, result.controls.s, result.controls.b


@on_ranks
@pytest.mark.parametrize("quadrilateral", [True, False], ids=["quadrilaterals", "triangles"])
def test_training_problem(quadrilateral):
    """J, its gradient and Hessian products through the reduced functional, W in the network's space or a coarse one."""
    for coarse in (False, True):
        assert_equal(numbers(COMM_WORLD, quadrilateral, coarse), numbers(COMM_SELF, quadrilateral, coarse))


@on_ranks
def test_images_split_over_an_ensemble():
    """Members with a mesh each and their share of the images give the numbers of one rank, and the same work."""
    ensemble = Ensemble(COMM_WORLD, 1)
    assert_equal(numbers(ensemble.comm, False, True, ensemble=ensemble), numbers(COMM_SELF, False, True))
    split, s, b = trained(ensemble.comm, ensemble)
    alone, s_alone, b_alone = trained(COMM_SELF, None)
    assert split.work.counts == alone.work.counts
    # Iterations amplify round-off.
    assert_equal({"s": s.dat.data_ro, "b": b.dat.data_ro}, {"s": s_alone.dat.data_ro, "b": b_alone.dat.data_ro}, 1e-8)


@pytest.mark.parallel(nprocs=2)
def test_bad_ensembles():
    ensemble = Ensemble(COMM_WORLD, 1)
    with pytest.raises(ValueError, match="Build the mesh with comm=ensemble.comm"):
        build_problem(COMM_WORLD, True, True, ensemble=ensemble)
    network = build_network(ensemble.comm, True)
    with pytest.raises(ValueError, match="1 image.* cannot be shared out among 2 ensemble members"):
        TrainingProblem(Readout(network, K), Sample(np.zeros((1, 8, 7)), np.array([0]), K), ensemble=ensemble)


@on_ranks
def test_controls_that_steps_share():
    """Controls in time are copies on every rank, whatever their degree."""
    for degree in (0, 1):
        time = dict(degree=degree, control_cells=2)
        assert_equal(numbers(COMM_WORLD, False, True, **time), numbers(COMM_SELF, False, True, **time))


@pytest.mark.parallel(nprocs=3)
def test_every_rank_returns_the_same():
    """Bit by bit, or optimisers that run in lockstep would part."""
    mine = numbers(COMM_WORLD, True, True)
    for other in COMM_WORLD.allgather({k: v for k, v in mine.items() if not k.endswith(" W")}):
        assert all(np.array_equal(other[name], mine[name]) for name in other)


@on_ranks
def test_propagation_block(annotation):
    """The gradient of a functional of Y(T), with Y0 among the controls."""

    def gradient(comm, quadrilateral):
        network = build_network(comm, quadrilateral)
        s, b = controls_of(network)
        Y0 = smooth(network.state_space(2))
        with annotation() as tape:
            Y = propagate(network, (s, b), Y0)
            J = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in (s, b, Y0)], tape=tape)
        value, (gs, gb, gY0) = J([s, b, Y0]), J.derivative()
        return {"J": np.array(float(value)), "s": gs.dat.data_ro.copy(), "b": gb.dat.data_ro.copy(),
                "Y0": in_order_of_place(gY0, network.space), "Y": in_order_of_place(Y, network.space)}

    for quadrilateral in (True, False):
        assert_equal(gradient(COMM_WORLD, quadrilateral), gradient(COMM_SELF, quadrilateral))


@pytest.mark.parallel(nprocs=2)
def test_plain_route(annotation):
    """The oracle agrees with the fused route on two ranks too."""
    network = build_network(COMM_WORLD, True)
    s, b = controls_of(network)
    Y0 = smooth(network.state_space(1))
    with annotation() as tape:
        Y = propagate(network, (s, b), Y0)
        fused = ReducedFunctional(assemble(inner(Y, Y) * dx), [Control(s), Control(b)], tape=tape).derivative()
    s_layers, b_layers = layer_controls(network, (s, b))
    with annotation() as tape:
        Y = propagate_plain(network, s_layers, b_layers, Y0)
        J = assemble(inner(Y, Y) * dx)
        plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers)], tape=tape).derivative()
    expected = network.cofunctions(layer_derivatives(network, plain[:LAYERS], plain[LAYERS:]))
    oracle = {"s": expected[0].dat.data_ro, "b": expected[1].dat.data_ro}
    assert_equal({"s": fused[0].dat.data_ro, "b": fused[1].dat.data_ro}, oracle)


@on_ranks
def test_more_ranks_than_a_mesh_has_cells():
    """A rank without a node of its own takes part all the same."""

    def value(comm):
        D = low_order_operators(FunctionSpace(RectangleMesh(2, 1, 2.0, 1.0, quadrilateral=True, comm=comm), "CG", 1))
        network = Network(D, ControlSpace(0.5, 2, D, 1))
        sample = Sample(np.random.default_rng(4).random((3, 2, 4)), np.array([0, 1, 1]), 2)
        problem = TrainingProblem(Readout(network, 2), sample)
        s, b = network.control_space.random(np.random.default_rng(5))
        W, beta = problem.readout.zero()
        point = [s, b, smooth(W.function_space()), beta]
        functional = problem.reduced_functional(point)
        value, gradient = functional(point), functional.derivative()
        return {"J": np.array(float(value)), "s": gradient[0].dat.data_ro.copy(),
                "W": in_order_of_place(gradient[2], problem.readout.space)}

    assert_equal(value(COMM_WORLD), value(COMM_SELF))


@on_ranks
def test_an_unstructured_mesh():
    """Rows of many lengths, the widest on one rank alone: the kernels are still the same on all."""

    def final(comm):
        V = FunctionSpace(Mesh(str(SQUARE), comm=comm), "CG", 1)
        D = low_order_operators(V)
        network = Network(D, ControlSpace(0.5, 2, D, C))
        s, b = controls_of(network)
        Y = propagate(network, (s, b), smooth(network.state_space(1)))
        return {"Y": in_order_of_place(Y, V)}

    assert_equal(final(COMM_WORLD), final(COMM_SELF))
