"""The seed's two experiments as demos: their tables, their figures by name, the same numbers on two ranks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["--train", "200", "--test", "100", "--features", "2", "--layers", "2", "--readout", "2"]
FIRST = [*SMALL, "--epochs", "1", "--seeds", "0", "1", "--networks", "multilevel", "train14"]
SECOND = [*SMALL, "--levels", "7", "14", "--newton-train", "100", "--iterations", "2", "2", "--fine-iterations", "3",
          "--epochs", "1", "1", "--fine-epochs", "1", "--target", "10"]


def run(name, folder, *arguments, ranks=1):
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    script = ROOT / "demos" / name / f"{name}.py"
    command = [*launcher, sys.executable, str(script), *arguments, "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((Path(folder) / "results.json").read_text())


def same_on_two_ranks(name, folder, results, arguments):
    two = folder / "two"
    two.mkdir()
    _, split = run(name, two, *arguments, ranks=2)
    assert split["ranks"] == 2
    for key, figure in results["figures"].items():
        if "seconds" not in key and "torch" not in key and figure is not None:
            # Single precision, summed in another order: an image on the edge of two classes may fall on either side.
            tolerance = dict(abs=2.0) if key.startswith(("accuracy", "spread")) else dict(rel=1e-3)
            assert split["figures"][key] == pytest.approx(figure, **tolerance), key


def test_experiment_1(tmp_path):
    printed, results = run("experiment_1", tmp_path, *FIRST)
    figures = results["figures"]
    for mesh in (7, 14, 28, 56):
        assert f"accuracy_multilevel_test{mesh}_rediscretised" in figures
        assert f"accuracy_linear_test{mesh}_rediscretised" in figures
    for mesh in (7, 28, 56):
        for method in ("rediscretised", "galerkin", "interpolated", "W_updated", "retrained"):
            assert 0 <= figures[f"accuracy_train14_test{mesh}_{method}"] <= 100
            assert figures[f"spread_train14_test{mesh}_{method}"] >= 0
    assert figures["parameters"] == 2 * 9 * 4 + 2 * 2 + 9 * 2 * 10 + 10
    assert "Mean and standard deviation over 2 seeds" in printed and "W_updated" in printed
    for name in ("confusion.png", "digits.png"):
        assert (tmp_path / name).stat().st_size > 5000
    same_on_two_ranks("experiment_1", tmp_path, results, FIRST)


def test_experiment_2(tmp_path):
    printed, results = run("experiment_2", tmp_path, *SECOND)
    figures = results["figures"]
    assert {"work_units_ratio_multilevel_over_fine", "seconds_to_10_over_torch", "accuracy_adam_multilevel",
            "objective_newton_fine"} <= set(figures)
    assert figures["accuracy_newton_multilevel"] > 30
    assert 0 < figures["work_units_ratio_multilevel_over_fine"] < 10
    assert (tmp_path / "convergence.png").stat().st_size > 5000
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch is not installed" in printed and figures["seconds_to_10_over_torch"] is None
    else:
        assert figures["accuracy_torch"] >= 0 and figures["seconds_to_10_torch"] > 0
    same_on_two_ranks("experiment_2", tmp_path, results, [*SECOND, "--without-torch"])


@pytest.mark.parametrize("name, arguments, message", [
    ("experiment_1", ["--epochs", "0"], "--epochs must be at least 1"),
    ("experiment_1", ["--data", "nowhere"], "There is no folder nowhere"),
    ("experiment_2", ["--levels", "5"], "28 pixels do not divide into 5 cells"),
    ("experiment_2", ["--epochs", "1"], "one number for each of the 3 levels"),
])
def test_bad_arguments_are_refused_before_anything_is_computed(tmp_path, name, arguments, message):
    script = ROOT / "demos" / name / f"{name}.py"
    command = [sys.executable, str(script), *arguments, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())
