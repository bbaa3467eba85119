"""All demos: each is run by a test, is no longer than a method section, and refuses what it cannot use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.demos import DEMOS, ROOT, script

MESH = str(ROOT / "meshes" / "square.msh")


@pytest.mark.parametrize("name", DEMOS)
def test_every_demo_is_run_by_a_test(name):
    """The demo ``x`` is run by ``test_x_demo.py``; other scripts of its folder are parts of it."""
    tests = Path(__file__).with_name(f"test_{name}_demo.py")
    assert tests.is_file() and re.search(rf'\brun\(\s*"{name}"', tests.read_text()), f"add {tests.name}, which runs it"
    assert f"{name}.py" in (ROOT / "README.md").read_text(), "name it in the README"


@pytest.mark.parametrize("path", sorted((ROOT / "demos").rglob("*.py")), ids=lambda path: path.name)
def test_every_script_belongs_to_a_demo_and_is_short(path):
    assert path.parent.name in DEMOS, "a demo is demos/name/name.py"
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize("name, arguments, message", [
    ("experiment_1", ["--epochs", "0"], "--epochs must be at least 1, received 0"),
    ("experiment_1", ["--data", "nowhere"], "There is no folder nowhere"),
    ("experiment_1", ["--blur", "1"], "--blur is a share from 0 to below 1, received 1.0"),
    ("experiment_2", ["--levels", "5"], "--levels: 28 pixels do not divide into 5 cells"),
    ("experiment_2", ["--epochs", "1"], "--epochs takes one number for each of the 3 levels"),
    ("experiment_2", ["--diffusion", "-1"], "--diffusion must not be negative, received -1.0"),
    ("mnist_multiscale", ["--levels", "5"], "--levels: 28 pixels do not divide into 5 cells"),
    ("mnist_multiscale", ["--levels", "7", "14", "--iterations", "1", "2", "3"], "one for each of the 2 levels"),
    ("mnist_multiscale", ["--operators", "stencil", "--mesh", MESH], "needs quadrilaterals"),
    ("mnist_multiscale", ["--mesh", "nowhere.msh"], "There is no mesh file nowhere.msh"),
    ("newton_counts", ["--meshes", "15"], "--meshes takes 14, 28 and 56; received 15"),
    ("newton_counts", ["--depths", "5"], "--depths takes 4, 8, 16 and 32; received 5"),
    ("newton_counts", ["--train", "0"], "--train must be at least 1, received 0"),
    ("optimisers", ["--quick", "--methods", "lion"], "--methods takes sgd, nesterov.*received lion"),
    ("optimisers", ["--quick", "--readout", "5"], "--readout: 28 pixels do not divide into 5 cells"),
    ("optimisers", ["--work", "-1"], "--work must be positive, received -1.0"),
    ("resolution", ["--cells", "14", "20"], "--cells takes 14, 28, 56, 112, 224, .*received 20"),
    ("resolution", ["--cells", "28", "14"], "--cells must increase and contain 28"),
    ("sphere", ["--shares", "1"], "--shares takes one number for each of the 3 levels"),
    ("sphere", ["--tested", "8"], "--levels and --tested end at 7"),
    ("sphere", ["--held-out", "4000"], "--held-out leaves nothing to train on: there are 4000"),
    ("trajectories", ["--classes", "1", "2"], "at least 3 different digits"),
    ("trajectories", ["--classes", "1", "2", "12"], "at least 3 different digits"),
    ("trajectories", ["--cells", "9"], "--cells: 28 pixels do not divide into 9 cells"),
    ("trajectories", ["--paths", "0"], "--paths must be at least 1, received 0"),
    ("trajectories", ["--test", "5"], "There are fewer than 2 test images of the digit"),
    ("user_dynamics", ["--readout", "5"], "--readout: 28 pixels do not divide into 5 cells"),
    ("user_dynamics", ["--iterations", "1", "2", "3"], "--iterations takes one number, or one for each of the 2"),
    ("user_dynamics", ["--diffusion", "0"], "--diffusion must be positive, received 0.0"),
    ("user_dynamics", ["--layers", "0"], "--layers must be at least 1, received 0"),
])
def test_bad_arguments_are_refused_before_anything_is_computed(tmp_path, name, arguments, message):
    command = [sys.executable, str(script(name)), *arguments, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
