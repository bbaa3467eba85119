"""What the package imports is what pyproject.toml says it depends on."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(name):
    """A distribution's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """Top-level modules that the package imports from elsewhere, each with a file that does."""
    found = {}
    for path in sorted((ROOT / "ctrlnet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                found.setdefault(name.split(".")[0], path.relative_to(ROOT))
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name != "ctrlnet"}


IMPORTED = imported()
DECLARED = {canonical(re.match(r"[\w.-]+", d).group()) for d in PROJECT["project"]["dependencies"]}
PINNED = {canonical(line.split("==")[0]) for line in (ROOT / ".setup/constraints.txt").read_text().splitlines()
          if line and not line.startswith("#")}


@pytest.mark.parametrize("module", IMPORTED)
def test_whatever_the_package_imports_is_declared(module):
    distributions = {canonical(d) for d in packages_distributions().get(module, [])}
    assert distributions & DECLARED, f"{IMPORTED[module]} imports {module}, of {distributions or 'no distribution'}"


def test_nothing_else_is_declared():
    used = {canonical(d) for module in IMPORTED for d in packages_distributions().get(module, [])}
    by_firedrake = {"vtk"}  # which Firedrake imports where it writes for ParaView
    assert DECLARED <= used | by_firedrake


@pytest.mark.parametrize("distribution", sorted(DECLARED))
def test_every_dependency_has_one_version(distribution):
    assert distribution in PINNED


def test_the_types_are_shipped():
    assert (ROOT / "ctrlnet/py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["ctrlnet"]
