"""Demos run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


DEMOS = sorted(folder.name for folder in (ROOT / "demos").iterdir() if (folder / f"{folder.name}.py").is_file())


def script(name):
    return ROOT / "demos" / name / f"{name}.py"


def run(name, folder, *arguments, ranks=1):
    """Run a demo with its output in a folder, which is made; return what it prints and its results."""
    folder.mkdir(exist_ok=True)
    launcher = [] if ranks == 1 else ["mpiexec", "-n", str(ranks)]
    command = [*launcher, sys.executable, str(script(name)), *arguments, "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((Path(folder) / "results.json").read_text())


def same_on_two_ranks(name, folder, results, arguments):
    """Check the figures of a run against those on two ranks."""
    _, split = run(name, folder / "two", *arguments, ranks=2)
    assert split["ranks"] == 2
    for key, figure in results["figures"].items():
        if "seconds" not in key and "torch" not in key and figure is not None:
            # Single precision, summed in another order: an image on the edge of two classes may fall on either side.
            tolerance = dict(abs=2.0) if key.startswith(("accuracy", "spread")) else dict(rel=1e-3)
            assert split["figures"][key] == pytest.approx(figure, **tolerance), key
