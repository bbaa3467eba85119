"""The seed's first experiment as a demo: its tables, its figures by name, the same numbers on two ranks."""

from __future__ import annotations

from support.demos import run, same_on_two_ranks

SMALL = ["--train", "200", "--test", "100", "--features", "2", "--layers", "2", "--readout", "2", "--epochs", "1",
         "--seeds", "0", "1", "--networks", "multilevel", "train14"]


def test_the_demo_trains_on_some_meshes_and_classifies_on_others(tmp_path):
    printed, results = run("experiment_1", tmp_path, *SMALL)
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
    same_on_two_ranks("experiment_1", tmp_path, results, SMALL)
