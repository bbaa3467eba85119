"""Multiscale training: levels, depth, prolonged classifiers, and the demo that shows it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from firedrake import FunctionSpace, SpatialCoordinate, as_vector
from small import blobs, small_network, small_problem, square

import ctrlnet as cn

ROOT = Path(__file__).parents[1]


def levels(cells=(2, 3, 6), **settings):
    network = small_network(cells[-1], **settings)
    problems = []
    for count in cells:
        on_level = network.on(FunctionSpace(square(count), "CG", 1))
        readout = cn.Readout(on_level, 3)
        sample = blobs(60).averaged(6 // count)
        problems.append(cn.TrainingProblem(readout, sample, weights_gradient=1e-2, weights_size=1e-2))
    return problems


def test_each_level_starts_from_the_controls_and_the_prolonged_classifier_of_the_one_before():
    problems = levels()
    s, b, _, _ = problems[0].controls(np.random.default_rng(0))
    seen = []
    results = cn.train_multiscale(
        problems, s, b, iterations=[3, 2, 1], callback=lambda level, i: seen.append((level, i.number)))
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    for before, after in zip(results, results[1:], strict=False):
        again = cn.train_level(after.problem, before.s, before.b, iterations=0)
        assert again.history.last.objective == pytest.approx(after.history.iterations[0].objective, rel=1e-8)
    assert [r.problem.network.operators.nodes for r in results] == [9, 16, 49]
    assert all(r.work.total > 0 for r in results)
    assert results[-1].problem.accuracy(blobs(60), *results[-1].controls) > 0.9


def test_secants_go_on_to_the_next_level():
    """On two levels with one mesh, the second continues the first as if it had not been interrupted."""
    network = small_network()
    whole, first, second = (small_problem(network=network) for _ in range(3))
    s, b, _, _ = whole.controls(np.random.default_rng(0))
    course = [i.objective for i in cn.train_level(whole, s, b, iterations=7).history.iterations]
    carried = cn.train_multiscale([first, second], s, b, iterations=[4, 3], carry_secants=True)
    seen = [[i.objective for i in result.history.iterations] for result in carried]
    assert [i.number for i in carried[1].history.iterations] == [0, 1, 2, 3]
    np.testing.assert_allclose(seen[0], course[:5], rtol=1e-10)
    np.testing.assert_allclose(seen[1], course[4:], rtol=1e-6)
    afresh = cn.train_multiscale([first, second], s, b, iterations=[4, 3])[1].history.last.objective
    assert afresh > seen[1][-1] * (1 + 1e-4), "without them the second level begins with the gradient"


def test_secants_stay_behind_where_the_controls_change():
    """More control cells, or another weight of the operators: a level starts afresh, and says nothing else."""
    shallow = small_network(layers=2)
    deep = shallow.with_depth(shallow.controls.finer(), steps=4)
    weighed = [small_problem(network=shallow), small_problem(network=shallow, control_scales=[1.0, 2.0, 2.0, 3.0])]
    for problems in ([small_problem(network=shallow), small_problem(network=deep)], weighed):
        s, b, _, _ = problems[0].controls(np.random.default_rng(0))
        last = [cn.train_multiscale(problems, s, b, iterations=[3, 3], carry_secants=carry)[1].history.last.objective
                for carry in (False, True)]
        assert last[0] == pytest.approx(last[1], rel=1e-10)


def test_a_classifier_keeps_its_field_when_it_is_prolonged():
    coarse, fine = (p.readout for p in levels((3, 6)))
    W, beta = coarse.functions()
    x, y = SpatialCoordinate(coarse.space.mesh())
    W.interpolate(as_vector([(k + 1) * x - k * y for k in range(6)]))
    beta.dat.data[:] = [[1.0, 2.0, 3.0]]
    finer, bias = coarse.prolong(W, beta, fine)
    x, y = SpatialCoordinate(fine.space.mesh())
    expected = fine.functions()[0].interpolate(as_vector([(k + 1) * x - k * y for k in range(6)]))
    assert np.abs(finer.dat.data_ro - expected.dat.data_ro).max(initial=0.0) < 1e-10
    assert np.array_equal(bias.dat.data_ro, beta.dat.data_ro)


def test_depth_grows_with_the_levels():
    network = small_network(6, layers=2)
    deep = network.with_depth(network.controls.finer(), steps=4)
    problems = [small_problem(network=network), small_problem(network=deep)]
    s, b, _, _ = problems[0].controls(np.random.default_rng(0))
    shallow, deeper = cn.train_multiscale(problems, s, b, iterations=[2, 0])
    assert deeper.problem.network.steps == 4
    coarse, _ = network.layers(shallow.s, shallow.b)
    fine, _ = deep.layers(deeper.s, deeper.b)
    assert np.allclose(fine, np.repeat(coarse, 2, axis=0)), "the same function of time"


def test_levels_that_do_not_fit_are_refused_before_any_training():
    problem = small_problem()
    other = small_problem(network=small_network(6, features=3))
    s, b, _, _ = problem.controls()
    with pytest.raises(ValueError, match="3 features; the one before has.*2. Use the same ControlSpace"):
        cn.train_multiscale([problem, other], s, b)
    with pytest.raises(ValueError, match="at least one level"):
        cn.train_multiscale([], s, b)
    with pytest.raises(ValueError, match="1 levels need as many iteration limits, received 2"):
        cn.train_multiscale([problem], s, b, iterations=[1, 2])
    assert problem.work.total == 0


def test_work_is_counted_in_images_times_nodes_times_layers():
    problem = small_problem(count=60)
    s, b, W, beta = problem.controls(np.random.default_rng(0))
    arrays = problem.arrays(s, b, W, beta)
    problem.average.value(*arrays)
    sample = (60, problem.network.operators.nodes, problem.network.steps)
    assert problem.work.units(*sample) == 1
    problem.average.gradient(*arrays)
    assert problem.work.units(*sample) == 3, "an adjoint sweep costs two forward sweeps; the trajectory is kept"
    problem.average.hessian(arrays, arrays)
    assert problem.work.units(*sample) == 3 + 2 + 5


DEMO = ROOT / "demos" / "mnist_multiscale" / "mnist_multiscale.py"
SHORT = ["--levels", "7", "14", "--train", "200", "--test", "100", "--iterations", "2", "--layers", "2"]


def run_demo(folder, *arguments, ranks=1):
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(DEMO), *SHORT, "--output", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((Path(folder) / "results.json").read_text())


def test_every_demo_is_run_by_a_test():
    scripts = {p.relative_to(ROOT).as_posix() for p in (ROOT / "demos").rglob("*.py")}
    assert scripts == {
        "demos/mnist_multiscale/mnist_multiscale.py", "demos/optimisers/optimisers.py",
        "demos/experiment_1/experiment_1.py", "demos/experiment_2/experiment_2.py", "demos/experiment_2/torch_twin.py",
        "demos/newton_counts/newton_counts.py",
        "demos/resolution/resolution.py", "demos/trajectories/trajectories.py",
        "demos/user_dynamics/user_dynamics.py",
    }, "add a test for a new demo"


def test_the_demo_writes_its_table_its_figures_and_the_same_numbers_on_two_ranks(tmp_path):
    printed, results = run_demo(tmp_path)
    figures = results["figures"]
    assert {"test_accuracy", "seconds", "work_units_multiscale", "work_units_fine_only"} <= set(figures)
    assert "test %" in printed and f"{figures['test_accuracy']:.2f}" in printed
    assert results["settings"]["levels"] == [7, 14] and results["ranks"] == 1
    for name in ("convergence.png", "stencils.png", "digits.png"):
        assert (tmp_path / name).stat().st_size > 5000
    two = tmp_path / "two"
    two.mkdir()
    _, split = run_demo(two, ranks=2)
    assert split["ranks"] == 2
    for name, figure in figures.items():
        if "seconds" not in name:
            assert split["figures"][name] == pytest.approx(figure, rel=1e-6, nan_ok=True), name


def test_the_demo_takes_an_unstructured_mesh_and_petsc_options(tmp_path):
    printed, results = run_demo(tmp_path, "--mesh", str(ROOT / "meshes" / "square.msh"), "-tao_monitor")
    assert "Function value" in printed, "-tao_monitor reaches TAO"
    assert results["figures"]["nodes_level_square"] > 900


@pytest.mark.parametrize("arguments, message", [
    (["--levels", "5"], "28 pixels do not divide into 5 cells"),
    (["--iterations", "1", "2", "3"], "one for each of the 2 levels"),
    (["--operators", "stencil", "--mesh", str(ROOT / "meshes" / "square.msh")], "needs quadrilaterals"),
    (["--mesh", "nowhere.msh"], "There is no mesh file nowhere.msh"),
])
def test_the_demo_refuses_bad_arguments_before_it_computes(tmp_path, arguments, message):
    command = [sys.executable, str(DEMO), *SHORT, "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())
