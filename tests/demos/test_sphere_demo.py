"""The demo of digits on a globe."""

from support.demos import run, same_on_two_ranks

ARGUMENTS = (
    "--train", "200", "--test", "60", "--epochs", "2", "--batch", "50", "--features", "3", "--layers", "2",
    "--levels", "1", "2", "--shares", "0.5", "0.5", "--tested", "1", "2", "3", "--held-out", "40")


def test_it_says_how_it_does_on_levels_it_was_not_trained_on(tmp_path):
    printed, results = run("sphere", tmp_path, *ARGUMENTS, "--seeds", "0", "1")
    figures = results["figures"]
    assert "160 training, 40 held-out and 60 test images" in printed and "Over 2 seeds" in printed
    for nodes in (42, 162, 642):
        assert 0 <= figures[f"test_{nodes}"] <= 100 and 0 <= figures[f"held_out_{nodes}"] <= 100
    assert figures["parameters"] == 42 * 3 * 10 + 10 + 2 * (5 * 9 + 3) and figures["seconds"] > 0
    assert (tmp_path / "globe.png").stat().st_size > 10_000 and (tmp_path / "states.pvd").is_file()
    assert (tmp_path / "seed0.h5").is_file() and (tmp_path / "checkpoints" / "seed_1.h5").is_file()
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("     0")] == ["yes", "yes", "no"]


def test_the_same_on_two_ranks(tmp_path):
    _, results = run("sphere", tmp_path, *ARGUMENTS, "--rule", "plain")
    results["figures"] = {k.replace("test_", "accuracy_").replace("held_out_", "accuracy_held_"): v
                          for k, v in results["figures"].items() if not k.startswith(("test_", "held_out_"))}
    same_on_two_ranks("sphere", tmp_path, results, (*ARGUMENTS, "--rule", "plain"))
