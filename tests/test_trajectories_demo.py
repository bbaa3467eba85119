"""The demo that draws the paths of the classes through time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

DEMO = Path(__file__).parents[1] / "demos" / "trajectories" / "trajectories.py"
SMALL = ["--layers", "8", "--train", "1500"]


def run_demo(folder, iterations, ranks=1):
    folder.mkdir(exist_ok=True)
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(DEMO), *SMALL, "--iterations", str(iterations), "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


def test_training_parts_the_paths(tmp_path):
    results = run_demo(tmp_path, 20)
    figures, separation = results["figures"], results["separation"]
    assert figures["separation_after"] > 1.5 * figures["separation_before"]
    assert figures["plane_accuracy_after"] > figures["plane_accuracy_before"]
    assert figures["separation_after"] > figures["separation_start_after"], "the classes part on their way"
    assert [len(s) for s in separation.values()] == [9, 9], "one value at each end of a step"
    assert separation["after training"][-1] == figures["separation_after"]
    drawn = imread(tmp_path / "trajectories.png")
    assert drawn.shape[0] > 300 and len(np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0)) > 100


def test_same_figures_on_two_ranks(tmp_path):
    one, two = (run_demo(tmp_path / str(ranks), 4, ranks)["figures"] for ranks in (1, 2))
    for name in ("objective", "separation_before", "separation_after"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.parametrize(("given", "message"), [
    (["--classes", "1", "2"], "at least 3 different digits"),
    (["--classes", "1", "2", "12"], "at least 3 different digits"),
    (["--cells", "9"], "28 pixels do not divide into --cells 9"),
    (["--paths", "0"], "--paths must be at least 1, received 0"),
    (["--test", "5"], "There are fewer than 2 test images of the digit"),
])
def test_bad_arguments_are_refused_before_anything_is_computed(given, message):
    done = subprocess.run([sys.executable, str(DEMO), *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr
