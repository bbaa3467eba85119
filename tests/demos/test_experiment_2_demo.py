"""The seed's second experiment as a demo: its table, its figures by name, the same numbers on two ranks."""

from __future__ import annotations

import importlib.util

from support.demos import run, same_on_two_ranks

SMALL = ["--train", "200", "--test", "100", "--features", "2", "--layers", "2", "--readout", "2", "--levels", "7", "14",
         "--newton-train", "100", "--iterations", "2", "2", "--fine-iterations", "3", "--epochs", "1", "1",
         "--fine-epochs", "1", "--target", "10"]


def test_the_demo_sets_multilevel_learning_against_the_fine_mesh(tmp_path):
    printed, results = run("experiment_2", tmp_path, *SMALL)
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
    same_on_two_ranks("experiment_2", tmp_path, results, [*SMALL, "--without-torch"])
