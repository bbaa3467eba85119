"""The demo of user-written dynamics: its table, its figures, the same numbers on two ranks, bad arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_experiments import ROOT, run, same_on_two_ranks

SHORT = ["--levels", "4", "7", "--features", "2", "--layers", "2", "--train", "60", "--test", "40", "--iterations", "2",
         "--readout", "2"]


def test_the_demo_trains_an_excitable_network(tmp_path):
    printed, results = run("user_dynamics", tmp_path, *SHORT)
    figures = results["figures"]
    assert figures["objective_4x4"] < figures["objective_start_4x4"]
    assert figures["objective_7x7"] < figures["objective_start_7x7"] < figures["objective_start_4x4"]
    assert figures["test_accuracy"] == figures["test_accuracy_7x7"] and "test_accuracy_linear" in figures
    assert f"{figures['test_accuracy']:.2f}" in printed
    assert max(len(line) for line in printed.splitlines() if "|" not in line) <= 100
    for name in ("convergence.png", "excitation.png"):
        assert (tmp_path / name).stat().st_size > 5000
    same_on_two_ranks("user_dynamics", tmp_path, results, SHORT)


@pytest.mark.parametrize("arguments, message", [
    (["--levels", "5"], "28 pixels do not divide into 5 cells"),
    (["--iterations", "1", "2", "3"], "one for each of the 2 levels"),
    (["--diffusion", "0"], "--diffusion must be positive, received 0.0"),
    (["--layers", "0"], "--layers must be at least 1, received 0"),
])
def test_the_demo_refuses_bad_arguments_before_it_computes(tmp_path, arguments, message):
    script = ROOT / "demos" / "user_dynamics" / "user_dynamics.py"
    command = [sys.executable, str(script), *SHORT, "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())
