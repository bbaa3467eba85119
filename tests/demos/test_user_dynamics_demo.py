"""The demo of user-written dynamics: its table, its figures, the same numbers on two ranks."""

from __future__ import annotations

from support.demos import run, same_on_two_ranks

SHORT = ["--levels", "4", "7", "--features", "2", "--layers", "2", "--train", "60", "--test", "40", "--iterations", "2",
         "--readout", "2"]


def test_the_demo_trains_an_excitable_network(tmp_path):
    printed, results = run("user_dynamics", tmp_path, *SHORT)
    figures = results["figures"]
    assert figures["objective_4x4"] < figures["objective_start_4x4"]
    assert figures["objective_7x7"] < figures["objective_start_7x7"] < figures["objective_start_4x4"]
    assert figures["test_accuracy"] == figures["test_accuracy_7x7"] and "test_accuracy_linear" in figures
    assert f"{figures['test_accuracy']:.2f}" in printed
    assert max(len(line) for line in printed.splitlines() if "|" not in line) <= 100
    for name in ("convergence.png", "excitation.png"):
        assert (tmp_path / name).stat().st_size > 5000
    same_on_two_ranks("user_dynamics", tmp_path, results, SHORT)
