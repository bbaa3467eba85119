"""Tables whose numbers are the figures, bars, and the run that holds both."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import pytest
from firedrake import COMM_WORLD

from ctrlnet.report import Column, LevelProgress, Progress, Run, Table


@dataclass
class Step:
    number: int
    loss: float = 0.5
    objective: float = 0.75
    work: float = 0.0


def table(figures, lines, *columns):
    return Table(columns, figures, lines.append)


def test_a_printed_number_is_a_figure_by_its_rows_name():
    figures, lines = {}, []
    found = table(figures, lines, Column("mesh", 6), Column("its", 4, "d", "iterations_{}"),
                  Column("test %", 14, ".2f", "accuracy_{}", "spread_{}"), Column("not kept", 9, ".1e"))
    found.head()
    found.row(["7x7", 12, (91.239, 0.5), 1234.0])
    found.row(["14x14", 3, 92.0, None], key=["fine"])
    assert lines == ["", "  mesh  its         test %  not kept",
                     "   7x7   12    91.24 ±0.50   1.2e+03",
                     " 14x14    3          92.00         -"]
    assert figures == {"iterations_7x7": 12.0, "accuracy_7x7": 91.239, "spread_7x7": 0.5,
                       "iterations_fine": 3.0, "accuracy_fine": 92.0}


def test_a_row_may_be_recorded_without_being_printed():
    figures, lines = {}, []
    found = table(figures, lines, Column("", 3), Column("F", 6, ".3f", "{}_{}_F"))
    found.row(["a", 1.0], key=["p", "q"], printed=False)
    assert figures == {"p_q_F": 1.0} and not lines


def test_a_table_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="at most 120 characters a line, received columns of 121"):
        Table([Column("a", 60), Column("b", 60)], {})
    found = table({}, [], Column("mesh", 6), Column("F", 6, ".3f", "F_{}"))
    with pytest.raises(ValueError, match="needs 2 cells, one a column; received 1"):
        found.row(["7x7"])
    found.row(["7x7", 1.0])
    with pytest.raises(ValueError, match="The figure 'F_7x7' is there already"):
        found.row(["7x7", 2.0])


def test_a_bar_follows_iterations(capsys):
    with Progress("28x28", 4, width=8) as bar:
        bar(Step(2))
        bar(Step(9, loss=0.25))
    last = capsys.readouterr().out.split("\r")[-1]
    assert last.startswith("   28x28 |") and "| 4/4 [" in last and "loss 0.2500]" in last
    with Progress("training", shown="objective", label="F") as bar:
        bar(Step(3))
    assert "training: 3 iterations [" in (last := capsys.readouterr().out.split("\r")[-1]) and "F 0.7500]" in last
    with Progress("adam", 40, position=lambda i: round(i.work), unit="WU") as bar:
        bar(Step(1, work=20.2))
    assert "| 20/40 WU [" in capsys.readouterr().out.split("\r")[-1]


def test_levels_have_a_bar_each(capsys):
    with LevelProgress(["7x7", "14x14"], [1, 2]) as bars:
        for level, number in ((0, 0), (0, 1), (1, 0), (1, 2)):
            bars(level, Step(number))
    ends = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]
    assert ["7x7 |" in ends[0], "1/1" in ends[0], "14x14 |" in ends[1], "2/2" in ends[1]] == [True] * 4


def test_a_run_leaves_its_figures_and_settings(tmp_path, capsys):
    run = Run(argparse.Namespace(layers=4, output=str(tmp_path)))
    found = run.table(Column("", 3), Column("F", 6, ".3f", "F_{}"))
    found.row(["a", 1.0])
    run.figures["accuracy"] = 90.0
    path = run.finish("results.json", histories=[1])
    content = json.loads(path.read_text())
    assert content["figures"] == {"F_a": 1.0, "accuracy": 90.0} and content["histories"] == [1]
    assert content["settings"] == {"layers": 4, "output": str(tmp_path)}
    assert capsys.readouterr().out == f"  a  1.000\nresults.json: {tmp_path}/\n"


@pytest.mark.parallel(2)
def test_rank_0_alone_prints_and_computes_alone(capsys, tmp_path_factory):
    folder = COMM_WORLD.bcast(str(tmp_path_factory.mktemp("run")))
    run = Run(argparse.Namespace(output=folder))
    run.say("a line")
    run.table(Column("F", 6, ".3f", "F")).row([1.0])
    with run.progress("training", 2) as bar:
        bar(Step(2))
    printed = capsys.readouterr().out
    assert ("a line" in printed, "1.000" in printed, "training" in printed) == (run.root,) * 3
    assert run.figures == {"F": 1.0} and run.ranks == 2
    assert run.alone(lambda: COMM_WORLD.rank + 5) == 5
