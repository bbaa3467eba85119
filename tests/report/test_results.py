"""Results on disk, figures, and the README's script."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ctrlnet as cn
from ctrlnet.report.figures import plot_convergence, plot_images, plot_stencils
from ctrlnet.storage.versions import versions

ROOT = Path(__file__).parents[2]


def test_results_hold_figures_settings_versions_and_ranks(tmp_path):
    path = cn.write_results(tmp_path / "new", {"a": 1.5, "missing": float("nan")}, {"levels": [7]}, extra_data=[1])
    content = json.loads(path.read_text())
    assert content["figures"] == {"a": 1.5, "missing": None}
    assert content["settings"] == {"levels": [7]} and content["ranks"] == 1 and content["extra_data"] == [1]
    assert content["versions"] == versions() and "firedrake" in versions()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"], "nothing half-written is left"


def test_a_figure_that_is_no_number_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="'accuracy' must be a number, received 'high'"):
        cn.write_results(tmp_path, {"accuracy": "high"}, {})
    assert not list(tmp_path.iterdir())


def test_figures_are_drawn(tmp_path):
    plot_convergence(tmp_path / "c.png", {"two pieces": [([1, 2], [1.0, 0.5]), ([3, 4], [0.4, 0.1])]})
    plot_stencils(tmp_path / "s.png", {"7x7": np.eye(3)[None], "14x14": np.zeros((1, 3, 3))}, ["first"])
    images = np.random.default_rng(0).random((12, 28, 28))
    plot_images(tmp_path / "i.png", images, np.arange(12) % 10, np.zeros(12, int))
    for name in "csi":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_readmes_script_runs_as_printed(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) > 1 and blocks[0].count("\n") <= 25

    def run(text):
        script = tmp_path / "script.py"
        script.write_text(text)
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    # Irksome has to be imported before the first form: its block is a script of its own.
    apart = [block for block in blocks if block.startswith("from irksome")]
    assert len(apart) == 1
    run(*apart)
    done = run("\n".join(block for block in blocks if block not in apart))
    rate = float(re.search(r"Taylor rate with the gradient: ([0-9.]+)", done.stdout).group(1))
    assert rate > 1.95
    assert float(re.search(r"training accuracy: ([0-9.]+)", done.stdout).group(1)) > 0.95


def test_every_figure_of_the_readmes_table_is_one_the_demo_prints():
    table = re.findall(r"^ +(\S+(?: only)?) +\d+ +\d+ +\d+ +\d+ +\d+ ", (ROOT / "README.md").read_text(), flags=re.M)
    assert table == ["7x7", "14x14", "28x28", "28x28 only", "linear"]
