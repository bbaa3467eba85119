"""The demo of ``make demo``: its table, its figures, the same numbers on two ranks, an unstructured mesh."""

from __future__ import annotations

import pytest
from support.demos import ROOT, run

SHORT = ["--levels", "7", "14", "--train", "200", "--test", "100", "--iterations", "2", "--layers", "2"]


def test_the_demo_writes_its_table_its_figures_and_the_same_numbers_on_two_ranks(tmp_path):
    printed, results = run("mnist_multiscale", tmp_path, *SHORT)
    figures = results["figures"]
    assert {"test_accuracy", "seconds", "work_units_multiscale", "work_units_fine_only"} <= set(figures)
    assert "test %" in printed and f"{figures['test_accuracy']:.2f}" in printed
    assert results["settings"]["levels"] == [7, 14] and results["ranks"] == 1
    for name in ("convergence.png", "stencils.png", "digits.png"):
        assert (tmp_path / name).stat().st_size > 5000
    _, split = run("mnist_multiscale", tmp_path / "two", *SHORT, ranks=2)
    assert split["ranks"] == 2
    for name, figure in figures.items():
        if "seconds" not in name:
            assert split["figures"][name] == pytest.approx(figure, rel=1e-6, nan_ok=True), name


def test_the_demo_takes_an_unstructured_mesh_and_petsc_options(tmp_path):
    printed, results = run(
        "mnist_multiscale", tmp_path, *SHORT, "--mesh", str(ROOT / "meshes" / "square.msh"), "-tao_monitor")
    assert "Function value" in printed, "-tao_monitor reaches TAO"
    assert results["figures"]["nodes_level_square"] > 900
