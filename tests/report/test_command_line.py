"""The command line of scripts: their own options, those they share, PETSc's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctrlnet.report import CommandLine, at_least_one, not_negative, one_of, positive


def parsed(monkeypatch, line, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    return line.parse()


def test_shared_and_own_options_have_their_defaults_and_types(monkeypatch):
    line = CommandLine("One line.\nMore.", "results/x", levels=[7, 14], time=2.0, train=None, data=None, seed=0)
    line.add("rate_of_growth", 0.5, "of it", check=positive)
    line.add("quick", False)
    line.add("names", None, several=True)
    line.add("kind", "a", choices=["a", "b"])
    found = parsed(monkeypatch, line, "--levels", "28", "--rate-of-growth", "2", "--quick", "--names", "p", "q")
    assert vars(found) == dict(levels=[28], time=2.0, train=None, data=None, seed=0, rate_of_growth=2.0, quick=True,
                               names=["p", "q"], kind="a", output="results/x", checkpoint=10.0, resume=False)
    assert sys.argv == ["script.py"]


def test_what_a_script_does_not_know_is_left_for_petsc(monkeypatch):
    found = parsed(monkeypatch, CommandLine("x", "results", layers=2), "-tao_monitor", "--layers", "3", "-log_view")
    assert found.layers == 3 and sys.argv == ["script.py", "-tao_monitor", "-log_view"]


def test_petsc_reads_what_is_left_when_firedrake_is_imported_afterwards(tmp_path):
    """Neither the report nor the package's root starts PETSc; the first public name does."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from ctrlnet.report import CommandLine, Run\n"
        "arguments = CommandLine('x', 'out', layers=2).parse()\n"
        "run = Run  # nothing of it starts anything yet\n"
        "assert not {'firedrake', 'petsc4py.PETSc', 'mpi4py.MPI'} & set(sys.modules)\n"
        "import ctrlnet as cn\n"
        "assert 'firedrake' not in sys.modules\n"
        "cn.Network\n"
        "from firedrake import PETSc\n"
        "options = PETSc.Options()\n"
        "print(arguments.layers, options['my_option'], options.hasName('layers'))\n")
    command = [sys.executable, str(script), "--layers", "5", "-my_option", "7", "-options_left", "no"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "7", "False"]


@pytest.mark.parametrize("arguments, message", [
    (["--layers", "0"], "--layers must be at least 1, received 0."),
    (["--time", "-1"], "--time must be positive, received -1.0."),
    (["--diffusion", "-1"], "--diffusion must not be negative, received -1.0."),
    (["--levels", "7", "5"], "--levels: 28 pixels do not divide into 5 cells: choose among 1, 2, 4, 7, 14, 28."),
    (["--data", "nowhere"], "--data: There is no folder nowhere; it holds the four IDX files of MNIST."),
    (["--layers", "many"], "argument --layers: invalid int value: 'many'"),
    (["--depth-of-it", "3"], "--depth-of-it takes 4, 8 and 16; received 3."),
])
def test_a_value_that_cannot_be_used_is_refused_by_its_option(monkeypatch, capsys, arguments, message):
    line = CommandLine("x", "results", layers=2, time=1.0, diffusion=0.0, levels=[7], data=None)
    line.add("depth_of_it", 4, check=one_of(4, 8, 16))
    with pytest.raises(SystemExit) as left:
        parsed(monkeypatch, line, *arguments)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_one_value_a_level(capsys):
    line = CommandLine("x", "results")
    assert line.one_each("epochs", [3, 4], [7, 14]) == [3, 4]
    assert line.one_each("epochs", [3], [7, 14], repeat=True) == [3, 3]
    for values, repeat, message in (([3], False, "one number for each of the 2 levels"),
                                    ([1, 2, 3], True, "one number, or one for each of the 2 levels")):
        with pytest.raises(SystemExit):
            line.one_each("epochs", values, [7, 14], repeat=repeat)
        assert f"--epochs takes {message}" in capsys.readouterr().err


def test_a_shared_option_that_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match="The shared options are cells, levels, .*; received 'colour'"):
        CommandLine("x", "results", colour=3)


@pytest.mark.parametrize("check, good, bad", [(at_least_one, 1, 0), (positive, 0.1, 0.0), (not_negative, 0.0, -0.1)])
def test_checks_say_nothing_of_what_is_right(check, good, bad):
    assert check("--x", good) is None and f"received {bad}" in check("--x", bad)
