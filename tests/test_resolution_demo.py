"""The demo that runs one network on meshes of increasing resolution."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demos" / "resolution" / "resolution.py"
SMALL = ["--cells", "14", "28", "--features", "2", "--layers", "2", "--time", "1", "--iterations", "1",
         "--train", "200", "--test", "40", "--classifier", "100"]


def run_demo(folder, ranks=1):
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(DEMO), *SMALL, "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


def test_the_demo_measures_every_scheme_and_the_same_on_two_ranks(tmp_path):
    figures = run_demo(tmp_path)["figures"]
    assert figures["newton_max"] <= 4 and figures["krylov_max"] <= 10
    for scheme in ("explicit", "implicit", "imex"):
        assert figures[f"accuracy_{scheme}_28"] > 20 and figures[f"difference_{scheme}_14"] > 0
    for name in ("resolution.png", "states.png"):
        assert (tmp_path / name).stat().st_size > 5000
    two = tmp_path / "two"
    two.mkdir()
    split = run_demo(two, ranks=2)["figures"]
    for name in ("objective", "difference_implicit_14", "difference_explicit_14"):
        assert split[name] == pytest.approx(figures[name], rel=1e-4), name


def test_bad_cells_are_refused_before_anything_is_computed(tmp_path):
    command = [sys.executable, str(DEMO), "--cells", "14", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--cells takes 14, 28, 56, 112, 224, received 20" in done.stderr
