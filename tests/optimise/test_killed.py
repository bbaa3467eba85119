"""Trainings that are killed and go on: a few moments here, ``make kill`` for more."""

import pytest
from kill import NAMES, main


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_moments(capsys):
    assert main(["--moments", "50"]) == 0
    assert "50 moments, 0 faults" in capsys.readouterr().out


@pytest.mark.parametrize("name", [NAMES[0], "Adam"])
def test_a_moment(name, capsys):
    assert main(["--moments", "1", "--names", name, "--ranks", "1"]) == 0
    assert "0 faults" in capsys.readouterr().out
