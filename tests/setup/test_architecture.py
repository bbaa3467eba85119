"""The script that holds the code to the plan of the house: each rule finds its fault, and none where there is none."""

from __future__ import annotations

import architecture
import pytest

PLAIN = '"""A room."""\n'


def house(tmp_path, **files):
    """A checkout with the given files of the package; ``__`` in a name stands for a slash."""
    for folder in ("ctrlnet", "tests", "demos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ctrlnet" / "__init__.py").write_text(PLAIN)
    for name, text in files.items():
        path = tmp_path / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        face = path.parent / "__init__.py"
        if "ctrlnet" in path.parts and not face.exists():
            face.write_text(PLAIN)
        path.write_text(text)
    return architecture.faults(tmp_path)


def test_a_house_that_stands_as_planned_has_no_fault(tmp_path, capsys):
    assert house(tmp_path, ctrlnet__operators__forms="", ctrlnet__network__net=(
        "from ctrlnet.operators.forms import Form\nfrom ctrlnet.errors import Bad\n"), ctrlnet__errors="") == []
    assert architecture.main(["--root", str(tmp_path)]) == 0
    assert "The house stands as planned" in capsys.readouterr().out
    assert architecture.main(["--root", str(tmp_path), "--table"]) == 0
    assert "| `network/` | A room. | all above |" in capsys.readouterr().out


@pytest.mark.parametrize("files, expected", [
    (dict(ctrlnet__operators__a="from ctrlnet.network.b import x\n", ctrlnet__network__b=""),
     "ctrlnet/operators/a.py:1: operators may not import network"),
    (dict(ctrlnet__kernels__a="from ctrlnet.controls import b\n", ctrlnet__controls__b=""),
     "kernels may not import controls (ctrlnet.controls.b); it may import operators, formulas"),
    (dict(ctrlnet__kernels__code__a="import ctrlnet.kernels.solves.b\n", ctrlnet__kernels__solves__b=""),
     "kernels/code may not import ctrlnet.kernels.solves.b"),
    (dict(ctrlnet__errors="from ctrlnet.operators import x\n", ctrlnet__operators__a=""),
     "errors stands below all rooms, but imports ctrlnet.operators"),
    (dict(ctrlnet__cellar__a="from ctrlnet.operators import x\n", ctrlnet__operators__a=""), "cellar is no room"),
    (dict(ctrlnet__adapt__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ctrlnet.adapt.b\n",
          ctrlnet__adapt__b="import ctrlnet.adapt.a\n"),
     "a circle of imports: ctrlnet.adapt.a -> ctrlnet.adapt.b -> ctrlnet.adapt.a"),
    (dict(ctrlnet__adapt__a="x = 1\n" * 401), "ctrlnet/adapt/a.py: 401 lines; a file of ctrlnet/ has one role"),
    (dict(demos__a="x = 1\n" * 201), "demos/a.py: 201 lines; a file of demos/ has one role and at most 200"),
    (dict(ctrlnet__a="", ctrlnet__b="", ctrlnet__c="", ctrlnet__d=""), "4 modules beside the rooms (a.py, b.py"),
    (dict(ctrlnet__adapt__a="from ctrlnet.adapt.b import _x\n", ctrlnet__adapt__b=""), "_x is private to ctrlnet"),
    (dict(ctrlnet__adapt__a="from ctrlnet.adapt import b\nb._x()\n", ctrlnet__adapt__b=""), "b._x is private"),
    (dict(ctrlnet__adapt__a="class Own: ...\nisinstance(1, (int, Own))\n"), "isinstance(..., Own) asks for"),
    (dict(ctrlnet__adapt__a="def f(x: int, y): ...\n"), "a.py:1: f has no type for y, its result"),
    (dict(ctrlnet__adapt__a="class A:\n    def f(self, x) -> int: ...\n"), "a.py:2: A.f has no type for x"),
])
def test_each_fault_is_found(tmp_path, files, expected):
    found = house(tmp_path, **files)
    assert any(expected in line for line in found), found


def test_the_readme_shows_the_rooms_as_they_are():
    assert "\n".join(architecture.table(architecture.ROOT)) in (architecture.ROOT / "README.md").read_text()
