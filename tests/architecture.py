"""The plan of the house, and what holds the code to it: ``make lint`` runs this script.

It reads the source and runs none of it. Every line it prints is a fault; it ends with 1 if there is one.
``--table`` prints the rooms instead: what each knows, what it may import and what it does import.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ctrlnet"

# A room may import those before it. The kernels know mathematics by formulas and operators alone, and samples know
# nothing of networks: what those two may import is said below.
ORDER = (
    "operators", "controls", "formulas", "kernels", "dynamics", "integrators", "network", "fields", "objective",
    "transfer", "storage", "optimise", "adapt", "report",
)
ONLY = {"kernels": ("operators", "formulas"), "fields": ("operators",), "formulas": ("operators",)}
# Within the kernels: text and arrays, then sweeps of one call, of formulas, and the solves that formulas need.
KERNELS = ("code", "fused", "traced", "solves")
# Modules beside the rooms, which every room may import and which import none; the package's face imports all.
BESIDE = ("errors", "own_tape")
MOST_MODULES = 3
MOST_LINES = {PACKAGE: 400, "tests": 400, "demos": 200}


@dataclass
class Module:
    """A source file: its dotted name, what it imports (module, name, line), and its syntax tree."""

    path: Path
    name: str
    tree: ast.Module
    imports: list[tuple[str, str | None, int]] = field(default_factory=list)

    @property
    def room(self) -> str:
        """The room's name, a module's beside the rooms, or nothing for the package's face."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


def modules_of(root: Path) -> dict[str, Module]:
    """Return the package's modules by name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(), filename=str(path))
        module = found[name] = Module(path, name, tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                module.imports += [(node.module, alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level:
                module.imports += [("." * node.level + (node.module or ""), a.name, node.lineno) for a in node.names]
            elif isinstance(node, ast.Import):
                module.imports += [(alias.name, None, node.lineno) for alias in node.names]
    return found


def target_of(source: str, name: str | None, known: dict[str, Module]) -> str | None:
    """Return the module of the package that an import takes, if it is one of the package's."""
    if source != PACKAGE and not source.startswith(PACKAGE + "."):
        return None
    inner = f"{source}.{name}"
    return inner if inner in known else source


def edges(known: dict[str, Module]) -> Iterator[tuple[Module, Module, int]]:
    """Yield every import within the package: who, whom, and its line."""
    for module in known.values():
        for source, name, line in module.imports:
            target = target_of(source, name, known)
            if target in known and target != module.name:
                yield module, known[target], line


def place(module: Module, line: int, root: Path) -> str:
    return f"{module.path.relative_to(root)}:{line}"


def allowed(room: str) -> tuple[str, ...]:
    """Return the rooms that one may import."""
    return ONLY.get(room, ORDER[: ORDER.index(room)])


def faults_of_order(known: dict[str, Module], root: Path) -> Iterator[str]:
    """Yield imports against the order of the rooms, and of the kernels' own."""
    for module, target, line in edges(known):
        mine, theirs = module.room, target.room
        if not mine or mine == "public":
            continue
        if mine in BESIDE:
            yield f"{place(module, line, root)}: {mine} stands below all rooms, but imports {target.name}"
        elif mine not in ORDER:
            yield f"{module.path.relative_to(root)}: {mine} is no room; the rooms are {', '.join(ORDER)}"
        elif mine != theirs and theirs not in BESIDE and theirs not in allowed(mine):
            yield (f"{place(module, line, root)}: {mine} may not import {theirs or 'the package itself'} "
                   f"({target.name}); it may import {', '.join(allowed(mine)) or 'no room'}")
        elif mine == theirs == "kernels":
            ranks = [KERNELS.index(p) if (p := m.name.split(".")[2:3]) and (p := p[0]) in KERNELS else None
                     for m in (module, target)]
            if None not in ranks and ranks[0] < ranks[1]:
                yield f"{place(module, line, root)}: kernels/{KERNELS[ranks[0]]} may not import {target.name}"


def faults_of_circles(known: dict[str, Module], root: Path) -> Iterator[str]:
    """Yield circles of modules, imports for types alone among them. A room's face hands names on and is no part."""
    graph: dict[str, set[str]] = {name: set() for name in known}
    for module, target, _ in edges(known):
        if module.path.name != "__init__.py" and target.path.name != "__init__.py":
            graph[module.name].add(target.name)
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> Iterator[str]:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                circle = [*path[path.index(other) :], other] if other in path else [name, other]
                yield "a circle of imports: " + " -> ".join(circle)
            elif other not in state:
                yield from visit(other, [*path, other])
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            yield from visit(name, [name])


def faults_of_size(root: Path) -> Iterator[str]:
    """Yield files that are too long, and a root with too many doors."""
    for folder, most in MOST_LINES.items():
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text().splitlines())
            if lines > most:
                yield f"{path.relative_to(root)}: {lines} lines; a file of {folder}/ has one role and at most {most}"
    doors = [p.name for p in sorted((root / PACKAGE).glob("*.py")) if p.name != "__init__.py"]
    if len(doors) > MOST_MODULES:
        yield f"{PACKAGE}/: {len(doors)} modules beside the rooms ({', '.join(doors)}), at most {MOST_MODULES}"


def faults_of_privacy(known: dict[str, Module], root: Path) -> Iterator[str]:
    """Yield private names that one module takes from another."""
    for module in known.values():
        for source, name, line in module.imports:
            target = target_of(source, name, known)
            private = name is not None and name.startswith("_") and not name.startswith("__")
            if target is not None and private:
                yield f"{place(module, line, root)}: {name} is private to {source}"
        taken = {alias.asname or alias.name.split(".")[0] for node in ast.walk(module.tree)
                 if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
        for node in ast.walk(module.tree):
            if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken
                    and node.attr.startswith("_") and not node.attr.startswith(("__", "_ad_"))):
                yield f"{place(module, node.lineno, root)}: {node.value.id}.{node.attr} is private to another module"


def faults_of_types(known: dict[str, Module], root: Path) -> Iterator[str]:
    """Yield questions for the type of the package's own objects: each answers by its methods instead."""
    classes = {node.name for m in known.values() for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)}
    for module in known.values():
        foreign = {alias.asname or alias.name for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)
                   if not (node.module or "").startswith(PACKAGE) for alias in node.names}
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2
                    and node.func.id in ("isinstance", "issubclass")):
                continue
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & classes - foreign
            for name in sorted(asked):
                yield f"{place(module, node.lineno, root)}: {node.func.id}(..., {name}) asks for a type of our own"


def faults_of_signatures(known: dict[str, Module], root: Path) -> Iterator[str]:
    """Yield public functions and methods without a type for each parameter and the result."""
    for module in known.values():
        for owner in [module.tree, *(n for n in module.tree.body if isinstance(n, ast.ClassDef))]:
            hidden = isinstance(owner, ast.ClassDef) and owner.name.startswith("_")
            for node in [] if hidden else owner.body:
                if not isinstance(node, ast.FunctionDef) or (node.name.startswith("_") and node.name != "__init__"):
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                if isinstance(owner, ast.ClassDef) and not static:
                    arguments = arguments[1:]
                bare = [a.arg for a in arguments if a.annotation is None]
                if node.returns is None and node.name != "__init__":
                    bare.append("its result")
                if bare:
                    what = f"{owner.name}.{node.name}" if isinstance(owner, ast.ClassDef) else node.name
                    yield f"{place(module, node.lineno, root)}: {what} has no type for {', '.join(bare)}"


def faults(root: Path) -> list[str]:
    """Return all faults of a checkout."""
    known = modules_of(root)
    found: list[str] = []
    for check in (faults_of_order, faults_of_circles, faults_of_privacy, faults_of_types, faults_of_signatures):
        found += check(known, root)
    return found + list(faults_of_size(root))


def table(root: Path) -> list[str]:
    """Return the rooms, from the ground up, as lines of a Markdown table."""
    known = modules_of(root)
    lines = ["| room | what it knows | may import |", "|---|---|---|"]
    for number, room in enumerate(ORDER):
        face = known.get(f"{PACKAGE}.{room}")
        if face is not None:
            may = ", ".join(ONLY[room]) if room in ONLY else "all above" if number else "none"
            lines.append(f"| `{room}/` | {(ast.get_docstring(face.tree) or '').splitlines()[0]} | {may} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the faults, or the table; return 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout")
    parser.add_argument("--table", action="store_true", help="print the rooms as a table")
    options = parser.parse_args(arguments)
    if options.table:
        print("\n".join(table(options.root)))
        return 0
    found = faults(options.root)
    print("\n".join(found) if found else f"The house stands as planned: {len(ORDER)} rooms.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
