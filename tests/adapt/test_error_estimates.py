"""Error estimates of mesh and steps: their whole, their parts, every target, dynamics and goal, and any rank count."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Ensemble,
    Function,
    FunctionSpace,
    SpatialCoordinate,
    VectorFunctionSpace,
    assemble,
    dx,
    grad,
    inner,
)
from irksome import BackwardEuler, Dt
from support.adaptive import COUNT, controls_of, loss_of, network_on, readout_of, sample_of, space_of
from support.ranks import assert_equal, on_ranks

import ctrlnet as cn
from ctrlnet.adapt import MeanLoss, ScoreGap, StateIntegral, largest_parts, mesh_error, step_error
from ctrlnet.fields import Numbers
from ctrlnet.network.stability import StabilityWarning
from ctrlnet.operators import lumped_dx
from ctrlnet.operators.refinement import refined

SCHEMES = {
    "imex": (cn.ReactionDiffusion(0.1), cn.IMEX()), "euler": (cn.Residual(), cn.ForwardEuler()),
    "heun": (cn.ReactionDiffusion(0.02), cn.RungeKutta()), "verlet": (cn.Hyperbolic(), cn.StoermerVerlet()),
    "backward": (cn.ReactionDiffusion(0.1), cn.BackwardEuler()),
    "antisymmetric": (cn.Antisymmetric(), cn.ForwardEuler()),
}
KINDS = ("classes", "numbers", "field", "classes at nodes")


def goal_of(V, kind="classes", scheme="imex", coarse=None, **settings):
    network = network_on(V, *SCHEMES[scheme], **settings)
    readout, W = readout_of(network, kind, coarse)
    return MeanLoss(readout, sample_of(kind), controls_of(network).extended(W), loss_of(kind))


def value_of(goal):
    """The goal by the sample average, which knows nothing of estimates."""
    average = cn.SampleAverage(goal.readout, goal.sample, goal.loss)
    return average.at(goal.layers).value(*goal.readout.arrays(goal.m))


def on_finer(goal, times):
    mesh = goal.network.operators.mesh
    for _ in range(times):
        mesh = refined(mesh)
    return goal.on(goal.network.on(FunctionSpace(mesh, "CG", 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", ["triangles", "quadrilaterals"])
def test_effectivity(mesh, kind):
    """Estimated over true error, the true one from two levels finer: near 1, and nearer on the finer mesh."""
    ratios = []
    for cells in (8, 16):
        goal = goal_of(space_of(mesh, cells), kind)
        estimate = mesh_error(goal)
        assert estimate.value == pytest.approx(value_of(goal), rel=1e-13)
        assert estimate.finer == pytest.approx(value_of(on_finer(goal, 1)), rel=1e-12)
        ratios.append(estimate.whole / (value_of(on_finer(goal, 2)) - estimate.value))
    assert 0.5 <= ratios[0] <= 2 and 0.8 <= ratios[1] <= 1.25, ratios


def test_effectivity_on_a_sphere():
    V = space_of("sphere", 2)
    goal = goal_of(V, coarse=V, steps=32)
    estimate = mesh_error(goal)
    assert 0.8 <= estimate.whole / (value_of(on_finer(goal, 2)) - estimate.value) <= 1.25


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("which", [mesh_error, step_error])
def test_the_whole_is_the_change(which, scheme):
    """The parts make up the goal's difference, found by propagating, up to a remainder of third order."""
    goal = goal_of(space_of("triangles", 6), scheme=scheme, steps=32)
    estimate = which(goal)
    assert estimate.whole == pytest.approx(estimate.change, rel=1e-2)
    with estimate.cells.dat.vec_ro as cells:
        assert cells.sum() == pytest.approx(estimate.whole, rel=1e-10)
    assert estimate.steps.sum() + estimate.opening + estimate.ending == pytest.approx(estimate.whole, rel=1e-10)
    assert abs(estimate.opening) < 1e-12 * abs(estimate.whole), "the waves are sampled exactly at the nodes"


def test_the_opening_has_the_error_of_the_pixels():
    """Faint pictures that neither mesh resolves: the projection of pixels has a part of its own, which counts."""
    network = network_on(space_of("triangles", 4))
    readout, W = readout_of(network, "classes")
    sample = cn.Sample(0.1 * np.random.default_rng(0).random((COUNT, 6, 6)), np.arange(COUNT) % 3, 3)
    estimate = mesh_error(MeanLoss(readout, sample, controls_of(network).extended(W), cn.SoftmaxCrossEntropy()))
    assert abs(estimate.opening) > 0.1 * abs(estimate.whole)
    assert estimate.whole == pytest.approx(estimate.change, rel=1e-2)


@pytest.mark.parametrize("which", [mesh_error, step_error])
def test_forms_of_a_user(which):
    """The sweeps of Irksome's schemes serve as well."""
    V = space_of("triangles", 4)
    D = cn.Operators(V, [cn.operators.identity])

    def heat(Y, v, layer):
        return (inner(Dt(Y), v) + 0.1 * inner(grad(Y), grad(v))) * lumped_dx() - layer.affine(Y, v)

    scheme = cn.Irksome(BackwardEuler(), images=8)
    network = cn.Network(D, cn.ControlSpace(0.5, 2, D, 2), 4, cn.UserDynamics(heat), scheme)
    readout, W = readout_of(network, "classes")
    m = network.control_space.random(np.random.default_rng(0), 0.3)
    estimate = which(MeanLoss(readout, sample_of("classes"), m.extended(W), cn.SoftmaxCrossEntropy()))
    assert estimate.whole == pytest.approx(estimate.change, rel=1e-2)


@pytest.mark.parallel(nprocs=2)
def test_an_ensemble_of_two():
    """Images split over two copies of the mesh: the indicators of one rank with all of them."""
    ensemble = Ensemble(COMM_WORLD, 1)
    found = []
    for comm, split in ((COMM_SELF, None), (ensemble.comm, ensemble)):
        network = network_on(space_of("triangles", 4, comm))
        readout, W = readout_of(network, "numbers")
        problem = cn.TrainingProblem(readout, blobs_of_numbers(), cn.LeastSquares(), ensemble=split)
        estimate = mesh_error(MeanLoss.of(problem, controls_of(network).extended(W)))
        found.append([estimate.value, estimate.whole, *estimate.steps, *estimate.cells.dat.data_ro])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10, atol=1e-14)


def blobs_of_numbers():
    rng = np.random.default_rng(0)
    return cn.Sample(rng.random((COUNT, 4, 4)), Numbers(rng.standard_normal((COUNT, 2))))


def test_the_remainder_is_of_third_order():
    remainders = []
    for cells in (6, 12):
        estimate = mesh_error(goal_of(space_of("quadrilaterals", cells)))
        remainders.append(abs(estimate.whole - estimate.change))
    assert np.log2(remainders[0] / remainders[1]) > 4.5  # of an error of second order


def test_the_steps_errors_are_those_of_single_steps():
    """A step's part is what the goal changes by if this network goes on from the finer states one step later."""
    goal = goal_of(space_of("triangles", 4), steps=4)
    network, halved = goal.network, goal.network.with_depth(steps=8)
    estimate = step_error(goal)
    layers, block = goal.layers, network.sweep.image_block
    pair = halved.sweep.trajectory(8, block)
    nodal = goal.nodal_map().nodal(goal.inputs, 0, COUNT)
    network.opening.open(layers, nodal, pair.initial)
    halved.sweep.forward(halved.layers(goal.m).in_time, halved.step_sizes, pair)
    ends = []
    for k in range(5):
        state = pair.complete(2 * k)[0].copy()
        for j in range(k, 4):
            one = network.sweep.trajectory(1, block)
            one.initial[:] = state
            network.sweep.forward(layers.in_time.at_step(j, 1), network.step_sizes[j : j + 1], one)
            state = one.final.copy()
        F = goal.readout.restrict(state)[:, :COUNT]
        W, beta = goal.readout.arrays(goal.m)
        terms = goal.sample.targets.of_images()
        ends.append(goal.loss.value(W.T @ F + beta[:, None], terms.values, terms.weights / COUNT))
    # Backward Euler's share of the error is a half.
    np.testing.assert_allclose(estimate.steps, np.diff(ends) / estimate.share, rtol=2e-2)


def test_step_errors_against_many_steps():
    goal = goal_of(space_of("triangles", 4), steps=32)
    estimate = step_error(goal)
    exact = value_of(goal.on(goal.network.with_depth(steps=2048)))
    assert 0.9 <= estimate.whole / (exact - estimate.value) <= 1.1


class TestGoals:
    """Goals of one's own: scores of classes, integrals of the state."""

    def test_a_gap_of_scores(self):
        goal = goal_of(space_of("triangles", 6))
        gap = MeanLoss(goal.readout, goal.sample, goal.m, ScoreGap(0, 2))
        estimate = mesh_error(gap)
        average = cn.SampleAverage(goal.readout, goal.sample)
        scores = average.scores(goal.layers, *goal.readout.arrays(goal.m))
        weights = goal.sample.targets.of_images().weights
        assert estimate.value == pytest.approx((weights * (scores[0] - scores[2])).mean(), rel=1e-12)
        assert estimate.whole == pytest.approx(estimate.change, rel=1e-2)

    @pytest.mark.parametrize("which", [mesh_error, step_error])
    def test_an_integral_of_the_state(self, which):
        network = network_on(space_of("triangles", 6))
        goal = StateIntegral(network, sample_of("classes"), controls_of(network), lambda Y, x: x[0] * inner(Y, Y))
        estimate = which(goal)
        assert estimate.whole == pytest.approx(estimate.change, rel=1e-2)
        Y = Function(network.state_space(1))
        total = 0.0
        for i in range(COUNT):
            Y0 = Function(network.state_space(1))
            network.opening.open(
                network.layers(goal.m), goal.nodal_map().nodal(goal.inputs, i, i + 1),
                Y0.dat.data.reshape(-1, network.features, 1))
            Y.assign(cn.propagate(network, goal.m, Y0))


            total += assemble(SpatialCoordinate(network.operators.mesh)[0] * inner(Y, Y) * dx) / COUNT
        assert estimate.value == pytest.approx(total, rel=1e-12)

    def test_what_is_refused(self):
        network = network_on(space_of("triangles", 2))
        m, sample = controls_of(network), sample_of("classes")
        with pytest.raises(ValueError, match="a scalar UFL expression"):
            mesh_error(StateIntegral(network, sample, m, lambda Y, x: Y))
        with pytest.raises(ValueError, match="depends on no final state"):
            mesh_error(StateIntegral(network, sample, m, lambda Y, x: x[0] + 0 * Y[0]))
        readout = cn.Readout(network, 3)
        nothing = MeanLoss(readout, sample, m.extended(readout.zero()), cn.SoftmaxCrossEntropy())
        with pytest.raises(ValueError, match="a classifier W that is not zero"):
            mesh_error(nothing)
        goal = goal_of(space_of("triangles", 2))
        for a, b in ((1, 1), (0, 3), (-1, 0)):
            with pytest.raises(ValueError, match="two different scores of 0 to 2"):
                mesh_error(MeanLoss(goal.readout, goal.sample, goal.m, ScoreGap(a, b)))
        for order in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="order at which an error falls"):
                mesh_error(goal, order=order)


def test_its_cost():
    """At most 6 forward propagations of the fine mesh, counted; memory changes nothing but the chunks."""
    goal, work = goal_of(space_of("triangles", 6)), cn.Work()
    estimate = mesh_error(goal, work=work)
    nodes = FunctionSpace(refined(goal.network.operators.mesh), "CG", 1).dim()
    assert 1 < work.units(COUNT, nodes, goal.network.steps) < 3
    again = mesh_error(goal, memory_limit=1)
    assert np.allclose(again.cells.dat.data_ro, estimate.cells.dat.data_ro, rtol=0, atol=1e-14)


def test_single_precision():
    V = space_of("triangles", 6)
    double, single = (mesh_error(goal_of(V, precision=p)) for p in ("double", "single"))
    assert single.whole == pytest.approx(double.whole, rel=1e-2)


def test_long_steps_are_warned_of():
    goal = goal_of(space_of("triangles", 12), scheme="heun", steps=4, T=8.0)
    with pytest.warns(StabilityWarning, match="too long"):
        mesh_error(goal)


@on_ranks
def test_on_ranks():
    """The same indicators to 1e-10, and the same cells marked."""
    def numbers(comm, kind):
        goal = goal_of(space_of("triangles", 5, comm), kind)
        found = {}
        for name, estimate in (("mesh", mesh_error(goal)), ("steps", step_error(goal))):
            marks = Function(estimate.cells.function_space())
            marks.dat.data[:] = largest_parts(estimate.cells.dat.data_ro, 0.4, comm)
            space = estimate.cells.function_space()
            found |= {
                f"{name} steps": estimate.steps, f"{name} cells": _by_centre(estimate.cells, space),
                f"{name} marks": _by_centre(marks, space)}
        return found

    for kind in ("classes", "field"):
        assert_equal(numbers(COMM_WORLD, kind), numbers(COMM_SELF, kind), 1e-10)


def _by_centre(function, space):


    mesh = space.mesh()
    X = Function(VectorFunctionSpace(mesh, "DG", 0)).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    places, values = (np.concatenate(mesh.comm.allgather(a)) for a in (X, function.dat.data_ro))
    return values[np.lexsort(np.rint(places * 1e6).T)]


