"""The demo that counts Newton and Krylov iterations under refinement: flat counts, several ranks, bad arguments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demos" / "newton_counts" / "newton_counts.py"


def run(folder, *arguments, ranks=1):
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(DEMO), "--output", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((Path(folder) / "results.json").read_text())["figures"]


def check_counts(figures, cases):
    newton = [figures[f"newton_{cells}_cells_{layers}_layers"] for cells, layers in cases]
    krylov = [figures[f"most_krylov_{cells}_cells_{layers}_layers"] for cells, layers in cases]
    assert max(newton) - min(newton) <= 0.2 * max(newton), f"mesh- and depth-independent Newton: {newton}"
    assert max(krylov) <= 12, f"mesh- and depth-independent Krylov: {krylov}"
    for cells, layers in cases:
        assert figures[f"relative_gradient_{cells}_cells_{layers}_layers"] <= 1e-3


@pytest.mark.slow
def test_newton_and_krylov_counts_do_not_grow_under_refinement(tmp_path):
    """Iterations to a relative gradient of 1e-3, and products with the Hessian a step at relative residual 0.1."""
    printed, figures = run(tmp_path)
    print(printed)
    check_counts(figures, [(14, 4), (28, 4), (56, 4)])
    check_counts(figures, [(14, 4), (14, 8), (14, 16), (14, 32)])


def test_the_demo_prints_its_table_and_the_same_numbers_on_two_ranks(tmp_path):
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        found.append(run(folder, "--meshes", "14", "28", "--depths", "4", "8", "--train", "100", ranks=ranks))
    printed, figures = found[0]
    assert "most Krylov" in printed and max(map(len, printed.split("\n\n")[1].splitlines())) <= 100
    check_counts(figures, [(14, 4), (28, 4)])
    check_counts(figures, [(14, 4), (14, 8)])
    assert found[1][1] == pytest.approx(figures, rel=1e-8)


@pytest.mark.parametrize("arguments, message", [
    (["--meshes", "15"], "--meshes takes 14, 28 and 56"),
    (["--depths", "5"], "--depths takes 4, 8, 16 and 32"),
    (["--train", "0"], "must be at least 1"),
])
def test_bad_arguments_are_refused_before_anything_is_computed(tmp_path, arguments, message):
    command = [sys.executable, str(DEMO), "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
