"""The demo that compares optimisers: its table, its figures, the same numbers on two ranks."""

import pytest
from support.demos import run

METHODS = [
    "sgd", "nesterov", "adam", "joint_cg", "joint_lbfgs", "joint_gauss_newton", "vp_gauss_newton", "vp_newton",
    "vp_lbfgs", "vp_lbfgs_schur", "vp_growing", "vp_growing_schur",
]


def test_the_demo_compares_all_methods(tmp_path):
    printed, results = run("optimisers", tmp_path, "--quick")
    figures = results["figures"]
    for method in METHODS:
        for figure in ("work_units_to_lbfgs200_loss", "seconds_to_lbfgs200_loss", "objective", "test_accuracy"):
            assert f"{method}_{figure}" in figures
        assert method in printed and results["histories"][method]["reason"]
        assert figures[f"{method}_objective"] > 0
    assert max(len(line) for line in printed.splitlines() if "|" not in line) <= 100, "a table fits a terminal"
    for name in ("objective_work_units", "objective_seconds", "test_error_work_units", "test_error_seconds"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    # Even here, at a tenth of the work: what eliminates the classifier is ahead of what does not.
    assert figures["vp_lbfgs_work_units_to_lbfgs200_loss"] < 0.5 * figures["joint_lbfgs_work_units_to_lbfgs200_loss"]


def test_the_demo_prints_the_same_numbers_on_two_ranks(tmp_path):
    """Every iterate of long runs too: round-off does not grow, in the classifier's solves or from step to step."""
    methods = ["adam", "joint_lbfgs", "vp_lbfgs_schur", "vp_growing"]
    arguments = ["--quick", "--precision", "double", "--methods", *methods]
    found = [run("optimisers", tmp_path / str(ranks), *arguments, ranks=ranks)[1] for ranks in (1, 2)]
    one, two = (results["figures"] for results in found)
    for name, figure in one.items():
        if "seconds" not in name and "inner" not in name:
            same = two[name] is None if figure is None else two[name] == pytest.approx(figure, rel=1e-8)
            assert same, f"{name}: {figure} on one rank, {two[name]} on two"
    for method in methods:
        columns = [[i["objective"] for i in results["histories"][method]["iterations"]] for results in found]
        assert columns[1] == pytest.approx(columns[0], rel=1e-8), method
