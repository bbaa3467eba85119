"""The demo that counts Newton and Krylov iterations under refinement: flat counts, several ranks."""

import pytest
from support.demos import run


def check_counts(figures, cases):
    newton = [figures[f"newton_{cells}_cells_{layers}_layers"] for cells, layers in cases]
    krylov = [figures[f"most_krylov_{cells}_cells_{layers}_layers"] for cells, layers in cases]
    assert max(newton) - min(newton) <= 0.2 * max(newton), f"mesh- and depth-independent Newton: {newton}"
    assert max(krylov) <= 12, f"mesh- and depth-independent Krylov: {krylov}"
    for cells, layers in cases:
        assert figures[f"relative_gradient_{cells}_cells_{layers}_layers"] <= 1e-3


@pytest.mark.slow
def test_newton_and_krylov_counts_do_not_grow_under_refinement(tmp_path):
    """Iterations to a relative gradient of 1e-3, and products with the Hessian a step at relative residual 0.1."""
    printed, results = run("newton_counts", tmp_path)
    print(printed)
    figures = results["figures"]
    check_counts(figures, [(14, 4), (28, 4), (56, 4)])
    check_counts(figures, [(14, 4), (14, 8), (14, 16), (14, 32)])


def test_the_demo_prints_its_table_and_the_same_numbers_on_two_ranks(tmp_path):
    small = ["--meshes", "14", "28", "--depths", "4", "8", "--train", "100"]
    (printed, one), (_, two) = (
        run("newton_counts", tmp_path / str(ranks), *small, ranks=ranks) for ranks in (1, 2))
    figures = one["figures"]
    assert "most Krylov" in printed and max(map(len, printed.split("\n\n")[1].splitlines())) <= 100
    check_counts(figures, [(14, 4), (28, 4)])
    check_counts(figures, [(14, 4), (14, 8)])
    assert two["figures"] == pytest.approx(figures, rel=1e-8)
