"""The demo that runs one network on meshes of increasing resolution."""

from __future__ import annotations

import pytest
from support.demos import run

SMALL = ["--cells", "14", "28", "--features", "2", "--layers", "2", "--time", "1", "--iterations", "1",
         "--train", "200", "--test", "40", "--classifier", "100"]


def test_the_demo_measures_every_scheme_and_the_same_on_two_ranks(tmp_path):
    figures = run("resolution", tmp_path, *SMALL)[1]["figures"]
    assert figures["newton_max"] <= 4 and figures["krylov_max"] <= 10
    for scheme in ("explicit", "implicit", "imex"):
        assert figures[f"accuracy_{scheme}_28"] > 20 and figures[f"difference_{scheme}_14"] > 0
    for name in ("resolution.png", "states.png"):
        assert (tmp_path / name).stat().st_size > 5000
    split = run("resolution", tmp_path / "two", *SMALL, ranks=2)[1]["figures"]
    for name in ("objective", "difference_implicit_14", "difference_explicit_14"):
        assert split[name] == pytest.approx(figures[name], rel=1e-4), name
