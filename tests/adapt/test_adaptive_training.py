"""Marking, adapted meshes and steps, and training that refines both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from firedrake import Function, FunctionSpace
from support.adaptive import controls_of, network_on, readout_of, sample_of, space_of
from support.derivatives import check_derivatives
from support.networks import small_problem

import ctrlnet as cn
from ctrlnet.adapt import MeanLoss, finer_mesh, finer_steps, largest_parts, mesh_error, step_error, train_adaptively
from ctrlnet.network.plain import layer_controls, propagate_plain
from ctrlnet.operators.refinement import refined
from ctrlnet.storage import Checkpoint


class TestMarking:
    def test_the_fewest_that_make_the_share(self):
        parts = np.array([0.1, -4.0, 0.5, 2.0, -0.4])
        assert list(largest_parts(parts, 0.5)) == [False, True, False, False, False]
        assert list(largest_parts(parts, 0.6)) == [False, True, False, True, False]
        assert largest_parts(parts, 1.0).all()

    def test_equal_parts_are_marked_together(self):
        assert list(largest_parts(np.array([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 0.1]), 0.4)) == [True, True, True, False]

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
    def test_shares_that_are_none(self, share):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            largest_parts(np.ones(3), share)

    def test_parts_that_are_none(self):
        with pytest.raises(ValueError, match="1 of 3 indicators are not finite"):
            largest_parts(np.array([1.0, np.nan, 2.0]), 0.5)
        with pytest.raises(ValueError, match="All indicators are zero"):
            largest_parts(np.zeros(3), 0.5)


def adapted(V, levels, scheme=(None, None), share=0.3):
    """A network on a mesh refined by its own estimates, with controls."""
    network = network_on(V, *scheme)
    for _ in range(levels):
        readout, W = readout_of(network, "classes")
        goal = MeanLoss(readout, sample_of("classes"), controls_of(network).extended(W), cn.SoftmaxCrossEntropy())
        network = finer_mesh(network, mesh_error(goal), share)
    return network


@pytest.mark.parametrize("scheme", ["euler", "imex"])
def test_derivatives_on_adapted_meshes_and_steps(annotation, assert_taylor, make_case, scheme):
    """Taylor 2 and 3, dot products, and the UFL reading, on an adapted mesh with unequal steps."""
    pair = {"euler": (cn.Residual(), cn.ForwardEuler()), "imex": (None, None)}[scheme]
    case = make_case("triangle", images=2)
    network = adapted(space_of("triangles", 2), 2, pair).with_depth(steps=[0.0, 0.1, 0.2, 0.5, 1.0])
    case.network, case.m = network, controls_of(network)
    case.Y0 = Function(network.state_space(2))
    case.Y0.dat.data[:] = np.random.default_rng(3).standard_normal(case.Y0.dat.data_ro.shape)
    mine = cn.propagate(network, case.m, case.Y0).dat.data_ro
    plain = propagate_plain(network, *layer_controls(network, case.m), case.Y0).dat.data_ro
    np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-10 * np.abs(plain).max())
    check_derivatives(case, annotation, assert_taylor)


def diffusion_iterations(network):
    """Conjugate gradient iterations of an IMEX step's solve, preconditioned by multigrid on the mesh's hierarchy."""
    D, space = network.operators, network.control_space
    scheme = cn.IMEX(solver="multigrid")
    solve = cn.Network(D, space, dynamics=cn.ReactionDiffusion(1.0), integrator=scheme).sweep._solve(1.0, 0.0)
    solve(np.random.default_rng(0).standard_normal((network.space.dof_dset.size, 1, 8)))
    return solve.iterations[-1]


def test_krylov_counts_on_adapted_meshes():
    """Multigrid on an adapted hierarchy of 5 levels takes at most 2 iterations more than on a uniform one."""
    V = space_of("triangles", 4)
    uniform = V.mesh()
    for _ in range(4):
        uniform = refined(uniform)
    fine = network_on(FunctionSpace(uniform, "CG", 1))
    network = adapted(V, 4, share=0.5)
    assert network.operators.nodes < fine.operators.nodes / 3
    assert diffusion_iterations(network) <= diffusion_iterations(fine) + 2


def test_a_front_in_time_needs_half_of_the_steps():
    """Controls that are a hundred times larger for a fiftieth of the time: against equal steps of the same error."""
    V = space_of("triangles", 3)
    D = cn.Operators(V, [cn.operators.identity, cn.derivative(0)])
    space = cn.ControlSpace(1.0, [0.0, 0.5, 0.52, 1.0], D, 2)
    network = cn.Network(D, space, space.times, dynamics=cn.Residual(cn.identity))
    m = space.zero()
    values = np.array([-1.0, 0.5, 0.5, -1.0, 0.2, 0.0, 0.0, 0.2])
    sizes = space.sampling(np.array([0.2, 0.51, 0.7])).T @ np.array([0.5, 50.0, 0.5])
    m.s.dat.data[:] = sizes[:, None] * values
    readout, W = readout_of(network, "classes")
    goal = MeanLoss(readout, sample_of("classes"), m.extended(W), cn.SoftmaxCrossEntropy())
    for _ in range(6):
        network, _ = finer_steps(goal.network, m, step_error(goal), 0.7)
        goal = goal.on(network)

    exact = step_error(goal.on(network.with_depth(steps=network.divided(64)))).value

    def error(network):
        return abs(step_error(goal.on(network)).value - exact)

    adaptive, equal = error(network), {n: error(network.with_depth(steps=n)) for n in (50, 100, 200, 400, 800)}
    needed = min((n for n, e in equal.items() if e <= adaptive), default=max(equal))
    assert 8 * network.steps <= needed, (network.steps, adaptive, equal)


def test_control_cells_are_halved_with_their_steps():
    goal_network = network_on(space_of("triangles", 3), steps=4)
    readout, W = readout_of(goal_network, "classes")
    m = controls_of(goal_network)
    goal = MeanLoss(readout, sample_of("classes"), m.extended(W), cn.SoftmaxCrossEntropy())
    finer, controls = finer_steps(goal_network, m, step_error(goal), 0.3, cells=True)
    space = finer.control_space
    assert 4 < space.cells == finer.steps and set(goal_network.times) < set(space.times)
    times = np.linspace(0.01, 0.99, 40)
    assert np.array_equal(
        space.sampling(times) @ controls.s.dat.data_ro, goal_network.control_space.sampling(times) @ m.s.dat.data_ro)


class TestTraining:
    def problem(self, cells=3, **settings):
        network = network_on(space_of("triangles", cells), steps=4)
        readout, _ = readout_of(network, "classes")
        return cn.TrainingProblem(
            readout, sample_of("classes"), control_size=1e-2, weights_size=1e-1, weights_gradient=1e-1, **settings)

    def test_until_the_tolerance(self):
        """Errors fall, nodes and steps grow, and the result is that of the last cycle's network."""
        problem, seen = self.problem(), []
        m = problem.controls(np.random.default_rng(0), 0.1)
        result = train_adaptively(
            problem, m, tolerance=2e-2, iterations=10, most_cycles=12, callback=lambda cycle: seen.append(cycle))
        assert result.reason == "tolerance" and tuple(seen) == result.cycles
        first, last = result.cycles[0], result.cycles[-1]
        assert abs(last.mesh_error) + abs(last.step_error) <= 2e-2 < abs(first.mesh_error) + abs(first.step_error)
        assert first.nodes < last.nodes == result.problem.network.operators.nodes
        assert [c.number for c in result.cycles] == list(range(1, len(seen) + 1))
        assert last.work > first.work and result.predict(problem.average.sample).shape == (6,)

    def test_budgets(self):
        problem = self.problem()
        m = problem.controls(np.random.default_rng(0), 0.1)
        for budget, reason in (
            (dict(most_cycles=2), "cycles"), (dict(most_nodes=17), "nodes"), (dict(most_seconds=1e-9), "seconds"),
            (dict(callback=lambda cycle: True), "interrupted")):
            result = train_adaptively(problem, m, tolerance=1e-9, iterations=1, **budget)
            assert result.reason == reason and len(result.cycles) == (2 if reason == "cycles" else 1)
            assert result.problem.network.operators.nodes <= 17 or reason != "nodes"

    def test_a_propagation_that_fails_later_keeps_what_was_trained(self):
        problem, calls = self.problem(), []
        m = problem.controls(np.random.default_rng(0), 0.1)

        def goal(problem, m):
            calls.append(problem.network.operators.nodes)
            if len(calls) == 2:
                raise cn.PropagationError("on the finer mesh")
            return MeanLoss.of(problem, m)

        result = train_adaptively(problem, m, tolerance=1e-9, iterations=1, goal=goal)
        assert result.reason == "failed: on the finer mesh" and calls[0] == 16 < calls[1]
        assert [c.nodes for c in result.cycles] == [16] and result.problem.network.operators.nodes == 16
        with pytest.raises(cn.PropagationError, match="on the finer mesh"):
            calls.append(0)
            del calls[1:]
            train_adaptively(problem, m, tolerance=1e-9, iterations=1, goal=goal)

    def test_quadrilaterals_are_refined_as_a_whole(self):
        network = network_on(space_of("quadrilaterals", 3), steps=4)
        readout, _ = readout_of(network, "classes")
        problem = cn.TrainingProblem(readout, sample_of("classes"))
        m = problem.controls(np.random.default_rng(0), 0.1)
        result = train_adaptively(problem, m, tolerance=1e-9, iterations=1, most_cycles=2)
        assert [c.nodes for c in result.cycles] == [16, 49]

    def test_explicit_steps_are_halved_where_the_finer_mesh_asks_for_it(self):
        network = network_on(space_of("triangles", 6), cn.ReactionDiffusion(0.4), cn.RungeKutta(), steps=16)
        readout, _ = readout_of(network, "classes")
        problem = cn.TrainingProblem(readout, sample_of("classes"), control_size=1e-2)
        m = problem.controls(np.random.default_rng(0), 0.1)
        result = train_adaptively(problem, m, tolerance=1e-9, iterations=1, most_cycles=1)
        assert result.problem.network.steps == 32 and abs(result.cycles[0].mesh_error) < 1

    def test_saved(self, tmp_path):
        problem = self.problem()
        m = problem.controls(np.random.default_rng(0), 0.1)
        result = train_adaptively(problem, m, tolerance=1e-9, iterations=1, most_cycles=3)
        found = cn.load(result.save(tmp_path / "net.h5"))
        assert found.network.operators.nodes == result.problem.network.operators.nodes
        assert np.array_equal(found.network.times, result.problem.network.times)

    @pytest.mark.parametrize("control_cells", [False, True])
    def test_it_goes_on_where_it_died(self, tmp_path, control_cells):
        """The cycles and the controls of a training that was left alone, to the last digit."""
        def trained(callback=None, **settings):
            problem = self.problem()
            m = problem.controls(np.random.default_rng(0), 0.1)
            return train_adaptively(problem, m, **(dict(
                tolerance=1e-9, iterations=2, most_cycles=4, control_cells=control_cells) | settings),
                callback=callback)

        def dies(cycle):
            if cycle.number == 3:
                raise RuntimeError("killed")

        path = tmp_path / "cycles.h5"
        with pytest.raises(RuntimeError, match="killed"):
            trained(dies, checkpoint=path)
        whole, seen = trained(), []
        again = trained(seen.append, checkpoint=Checkpoint(path, resume=True))
        assert [cycle.number for cycle in seen] == [3, 4], "two cycles were kept"
        for mine, theirs in zip(again.cycles, whole.cycles, strict=True):
            assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)
        for mine, theirs in zip(again.controls, whole.controls, strict=True):
            assert np.array_equal(mine.dat.data_ro, theirs.dat.data_ro)
        with pytest.raises(ValueError, match="another run: its tolerance differ"):
            trained(tolerance=0.5, checkpoint=Checkpoint(path, resume=True))

    def test_what_is_refused(self):
        problem = small_problem()
        m = problem.controls()
        for bad, message in (
            (dict(tolerance=0.0), "tolerance of an error"), (dict(tolerance=-1.0), "tolerance of an error"),
            (dict(tolerance=1.0, share=0.0), "above 0 and up to 1"), (dict(tolerance=1.0, share=1.5), "up to 1"),
            (dict(tolerance=1.0, most_nodes=0), "budget most_nodes"), (dict(tolerance=1.0, most_cycles=0), "most_cyc"),
            (dict(tolerance=1.0, most_seconds=-1.0), "most_seconds")):
            with pytest.raises(ValueError, match=message):
                train_adaptively(problem, m, **bad)


