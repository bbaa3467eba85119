"""The caller's tape: building and training leave no block on it; derivatives go through transfers of controls."""

import numpy as np
import pytest
from firedrake import Function, FunctionSpace, MeshHierarchy, assemble, dx, inner
from firedrake.adjoint import (
    Control,
    ReducedFunctional,
    continue_annotation,
    get_working_tape,
    pause_annotation,
    stop_annotating,
    taylor_test,
)
from support.networks import blobs, small_network, small_problem, square
from support.ranks import on_ranks, smooth
from support.targets import KINDS, problem_of, start_of

import ctrlnet as cn
from ctrlnet.adapt import MeanLoss, finer_mesh, finer_steps, mesh_error, step_error, train_adaptively
from ctrlnet.fields import PixelProjection, PointValues, globe_pixels
from ctrlnet.own_tape import own_tape
from ctrlnet.transfer import carry, galerkin, galerkin_prolongation, restrict_classifier


@pytest.fixture
def tape():
    """The working tape, with annotation on."""
    found = get_working_tape()
    found.clear_tape()
    continue_annotation()
    yield found
    pause_annotation()
    found.clear_tape()


SETTINGS = {
    "residual": {}, "IMEX": dict(dynamics=cn.ReactionDiffusion(0.1, learned=True), integrator=cn.IMEX()),
    "implicit": dict(dynamics=cn.Parabolic(), integrator=cn.BackwardEuler()),
    "Verlet": dict(dynamics=cn.Hyperbolic(), integrator=cn.StoermerVerlet()),
    "opening": dict(opening=cn.LearnedOpening(2, 1)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_networks_problems_and_predictions_leave_no_block(name, tape, tmp_path):
    network = small_network(**SETTINGS[name])
    problem = small_problem(network=network, count=20)
    m = problem.controls(np.random.default_rng(0), 0.1)
    problem.coordinates()
    problem.accuracy(blobs(10), m)
    problem.prediction(m).trajectory(blobs(4).inputs)
    network.on(FunctionSpace(square(4), "CG", 1)).with_depth(network.control_space.finer()).sweep  # noqa: B018
    cn.interior_stencil(network.operators, np.ones(len(network.operators)))
    cn.save(tmp_path / "net.h5", problem, m)
    cn.load(tmp_path / "net.h5")
    cn.load_controls(tmp_path / "net.h5", problem)
    assert not tape.get_blocks()


@pytest.mark.parametrize("kind", KINDS)
def test_problems_of_every_target_leave_no_block(kind, tape):
    with stop_annotating():
        problem = problem_of(kind, count=6)
    problem.with_average(cn.SampleAverage(problem.readout, problem.average.sample, problem.average.loss))
    problem.on_sample(problem.average.sample)
    assert not tape.get_blocks()


def test_maps_and_hierarchies_leave_no_block(tape):
    from ctrlnet.operators import sphere_hierarchy

    sphere = sphere_hierarchy(1.0, 2)
    globe_pixels(FunctionSpace(sphere[2], "CG", 1), (4, 4))
    V = FunctionSpace(square(4), "CG", 1)
    PixelProjection(V, (4, 4))
    PointValues(np.full((3, 2), 2.0) + np.eye(3, 2), np.ones((1, 1, 3))).onto(V)
    coarse, fine = (cn.stencil_operators(FunctionSpace(m, "CG", 1)) for m in MeshHierarchy(square(3), 1))
    galerkin(fine, coarse)
    galerkin_prolongation(coarse, fine)
    assert not tape.get_blocks()


def test_training_leaves_no_block(tape):
    problem = small_problem(count=20)
    cn.train_multiscale([problem, problem], problem.controls(np.random.default_rng(0)), iterations=2)
    assert not tape.get_blocks()


# Transfers of controls are taped.

def rate_through(transfer, control):
    """Taylor rate of a functional of what a transfer gives, with respect to one control."""
    with own_tape() as tape:
        outs = transfer(control)
        J = sum((assemble(inner(out, out) ** 2 * dx) for out in outs), start=0.0)
        reduced = ReducedFunctional(J, Control(control), tape=tape)
    h = Function(control.function_space())
    h.dat.data[:] = np.random.default_rng(3).standard_normal(h.dat.data_ro.shape)
    assert reduced.derivative().dat.norm > 0
    return taylor_test(reduced, control, h)


@on_ranks
def test_derivatives_go_through_prolongation_in_time_and_carry():
    network = small_network()
    space, m = network.control_space, network.control_space.random(np.random.default_rng(0), 0.3)
    fine = space.finer()
    assert rate_through(lambda s: space.prolong(m.replace(s=s), fine)[:1], m.s) > 1.9
    assert rate_through(lambda s: carry(network, m.replace(s=s), control_space=fine)[1][:1], m.s) > 1.9


@on_ranks
def test_derivatives_go_through_galerkin_maps():
    coarse, fine = (cn.stencil_operators(FunctionSpace(m, "CG", 1)) for m in MeshHierarchy(square(4), 1))
    controls = cn.ControlSpace(1.0, 2, fine, 2)
    m = controls.random(np.random.default_rng(0), 0.3)
    network, move = cn.Network(fine, controls), galerkin(fine, coarse)
    assert rate_through(lambda s: [move(s)], m.s) > 1.9
    assert rate_through(lambda s: [galerkin_prolongation(coarse, fine)(s)], m.s) > 1.9
    assert rate_through(lambda s: carry(network, m.replace(s=s), coarse.space, kernels=galerkin)[1][:1], m.s) > 1.9


@on_ranks
def test_derivatives_go_through_classifiers_on_other_meshes():
    meshes = MeshHierarchy(square(2), 1)
    network = small_network()
    coarse, fine = (cn.Readout(network, 3, FunctionSpace(mesh, "CG", 1)) for mesh in meshes)
    for source, target, move in ((coarse, fine, coarse.prolong), (coarse, cn.Readout(network, 3, coarse.space),
                                 coarse.prolong), (fine, coarse, lambda m, r: restrict_classifier(fine, m, r))):
        m = source.zero()
        m.W.assign(smooth(m.W.function_space()))
        assert rate_through(lambda W, m=m, move=move, target=target: move(m.replace(W=W), target)[:1], m.W) > 1.9
        m.beta.assign(0.5)
        assert rate_through(
            lambda b, m=m, move=move, target=target: move(m.replace(beta=b), target)[1:], m.beta) > 1.9


def test_second_derivatives_go_through_a_linear_map():
    network = small_network()
    space, m = network.control_space, network.control_space.random(np.random.default_rng(0), 0.3)
    with own_tape() as tape:
        (fine, *_) = space.prolong(m, space.finer())
        reduced = ReducedFunctional(assemble(inner(fine, fine) ** 2 * dx), Control(m.s), tape=tape)
    h = Function(m.s.function_space())
    h.dat.data[:] = np.random.default_rng(3).standard_normal(h.dat.data_ro.shape)
    J0, dJ = reduced(m.s), reduced.derivative()._ad_dot(h)
    H = reduced.hessian(h)._ad_dot(h)
    residuals = []
    for step in (4e-3, 2e-3, 1e-3):
        moved = Function(m.s.function_space()).assign(m.s + step * h)
        residuals.append(abs(reduced(moved) - J0 - step * dJ - 0.5 * step**2 * H))
    assert np.log2(residuals[0] / residuals[1]) > 2.8 and np.log2(residuals[1] / residuals[2]) > 2.8


def test_a_controlled_start_of_another_mesh_is_still_the_same(tmp_path):
    problem = problem_of("class vectors")
    m = start_of(problem)
    moved = problem.readout.prolong(m, problem.readout.on(problem.network))
    assert np.array_equal(moved.W.dat.data_ro, m.W.dat.data_ro)


def test_adaptation_leaves_no_block(tape):
    """Estimates, refined meshes and steps, trainings with them, and the search for a depth."""
    problem = small_problem(network=small_network(cells=2), count=8)
    m = problem.controls(np.random.default_rng(0), 0.1)
    adapted = train_adaptively(problem, m, tolerance=1e-9, iterations=1, most_cycles=2, control_cells=True)
    goal = MeanLoss.of(adapted.problem, adapted.controls)
    finer_mesh(goal.network, mesh_error(goal))
    finer_steps(goal.network, goal.m, step_error(goal))
    cn.adapt_depth(problem.network, blobs(4), m, 0.5)
    assert not tape.get_blocks()
