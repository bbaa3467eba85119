"""The demo that draws the paths of the classes through time."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread
from support.demos import run

SMALL = ["--layers", "8", "--train", "1500"]


def test_training_parts_the_paths(tmp_path):
    _, results = run("trajectories", tmp_path, *SMALL, "--iterations", "20")
    figures, separation = results["figures"], results["separation"]
    assert figures["separation_after"] > 1.5 * figures["separation_before"]
    assert figures["plane_accuracy_after"] > figures["plane_accuracy_before"]
    assert figures["separation_after"] > figures["separation_start_after"], "the classes part on their way"
    assert [len(s) for s in separation.values()] == [9, 9], "one value at each end of a step"
    assert separation["after training"][-1] == figures["separation_after"]
    drawn = imread(tmp_path / "trajectories.png")
    assert drawn.shape[0] > 300 and len(np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0)) > 100


def test_same_figures_on_two_ranks(tmp_path):
    one, two = (run("trajectories", tmp_path / str(ranks), *SMALL, "--iterations", "4", ranks=ranks)[1]["figures"]
                for ranks in (1, 2))
    for name in ("objective", "separation_before", "separation_after"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
