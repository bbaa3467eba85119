"""Meshes in a file: by Firedrake's CheckpointFile, and by how they were made where that is all it takes.

Several spaces of one network may live on one mesh, or on levels of one hierarchy, and do so again when they are read:
a file has one *family* for each mesh without a hierarchy, and one for each hierarchy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from firedrake import CheckpointFile, FunctionSpace, MeshHierarchy
from firedrake.functionspaceimpl import WithGeometry
from firedrake.mesh import MeshGeometry
from firedrake.mg.utils import get_level
from mpi4py import MPI

from ctrlnet.operators.refinement import marked_places, marks_at, refined
from ctrlnet.operators.sphere import radius_of, sphere_hierarchy

__all__ = ["StoredMeshes", "bytes_of", "made_meshes", "named_space", "space_named", "write_meshes"]

_ELEMENTS = (("CG", 1), ("DG", 0), ("CG", 2), ("DG", 1))
_FINGERS = 1e-8


class StoredMeshes:
    """The meshes of a file that is being written."""

    def __init__(self) -> None:
        self._families: list[Any] = []  # a hierarchy, or a mesh without one
        self._levels: list[int] = []  # the finest level that is needed
        self._prints: list[dict[str, list[float]]] = []

    def place_of(self, mesh: MeshGeometry) -> list[int]:
        """Return the number of a mesh's family and its level there."""
        hierarchy, level = get_level(mesh)
        owner = mesh if hierarchy is None or hierarchy[int(level)] is not mesh else hierarchy
        level = 0 if owner is mesh else int(level)
        number = next((k for k, family in enumerate(self._families) if family is owner), len(self._families))
        if number == len(self._families):
            self._families.append(owner)
            self._levels.append(0)
            self._prints.append({})
        self._levels[number] = max(self._levels[number], level)
        self._prints[number][str(level)] = _fingerprint(mesh)
        return [number, level]

    def recipes(self) -> list[dict[str, Any]]:
        """Return for each family how it is made again, as plain data. Collective."""
        return [_recipe(family, number, level) | {"prints": prints, "name": _first(family).name} for
                number, (family, level, prints) in enumerate(zip(
                    self._families, self._levels, self._prints, strict=True))]

    def stored(self, recipes: Sequence[Mapping[str, Any]]) -> dict[str, MeshGeometry]:
        """Return the meshes that recipes need, by their names in the file."""
        return {recipe["stored"]: _first(family) for family, recipe in zip(self._families, recipes, strict=True)
                if "stored" in recipe}


def bytes_of(meshes: Mapping[str, MeshGeometry]) -> int:
    """Return about how many bytes meshes take in a file, rather more than fewer; the same on every rank. Collective."""
    cells = [mesh.comm.allreduce(mesh.cell_set.size) for mesh in meshes.values()]
    return sum(2**17 + 800 * count for count in cells)


def write_meshes(file: CheckpointFile, meshes: Mapping[str, MeshGeometry]) -> None:
    """Write meshes under their names in the file. Collective."""
    for name, mesh in meshes.items():
        with _named(mesh, name):
            file.save_mesh(mesh)


def _first(family: Any) -> MeshGeometry:
    """Return the coarsest mesh of a family."""
    return next(iter(family)) if hasattr(family, "refinements_per_level") else family


def _stored_name(number: int) -> str:
    return f"ctrlnet_mesh_{number}"


def _recipe(family: Any, number: int, finest: int) -> dict[str, Any]:
    if finest == 0:
        return {"stored": _stored_name(number), "refinements": 0}
    marks = marked_places(list(family)[1 : finest + 1])
    if marks is not None:
        return {"stored": _stored_name(number), "refinements": finest,
                "marks": [None if places is None else places.tolist() for places in marks]}
    radius = radius_of(family)
    if radius is not None:
        return {"radius": radius, "refinements": finest}
    if family.refinements_per_level == 1 and not _first(family).extruded:
        return {"stored": _stored_name(number), "refinements": finest}
    return {}


@contextmanager
def _named(mesh: MeshGeometry, name: str):
    """Context in which a mesh, and what it stands on, has another name: a file has room for one of each."""
    with ExitStack() as stack:
        base = getattr(mesh, "_base_mesh", None)
        if base is not None:
            stack.enter_context(_named(base, f"{name}_base"))
        plex = None if base is not None else mesh.topology.topology_dm  # an extruded mesh has its base's
        before = mesh.name, mesh.topology.name, plex and plex.getName()
        mesh.name, mesh.topology.name = name, f"{name}_topology"
        if plex is not None:
            plex.setName(mesh.topology.name)
        try:
            yield
        finally:
            mesh.name, mesh.topology.name = before[:2]
            if plex is not None:
                plex.setName(before[2])


def _fingerprint(mesh: MeshGeometry) -> list[float]:
    """Return numbers that meshes of other nodes do not share, the same on any number of ranks. Collective."""
    X = mesh.coordinates.dat.data_ro.reshape(-1, mesh.geometric_dimension)
    most = mesh.comm.allreduce(float(np.abs(X).max(initial=0.0)), op=MPI.MAX) or 1.0
    waves = np.sin(X / most @ np.array([[1.0, 2.0], [1.7, -1.3], [0.6, 2.9]])[: X.shape[1]]).sum(axis=0)
    sums = mesh.comm.allreduce(np.array([len(X), *waves]), op=MPI.SUM)
    return [most, float(sums[0]), *(float(s) / max(float(sums[0]), 1.0) for s in sums[1:])]


def made_meshes(
    path: str | Path, recipes: Sequence[Mapping[str, Any]], given: Mapping[str, MeshGeometry], comm: MPI.Comm
) -> list[list[MeshGeometry]]:
    """Return the levels of each family of a file. Collective.

    Raises
    ------
    ValueError
        If a mesh can only be given and is not, or is another one.
    """
    families = [_made(path, recipe, given, comm) for recipe in recipes]
    for recipe, levels in zip(recipes, families, strict=True):
        for level, theirs in recipe["prints"].items():
            ours = _fingerprint(levels[int(level)])
            if not np.allclose(ours, theirs, rtol=_FINGERS, atol=_FINGERS):
                raise ValueError(
                    f"The nodes of {levels[int(level)]} are not those of the mesh that {path} was saved with, "
                    f"which may have moved after its refinement. Give that mesh: meshes={{{recipe['name']!r}: ...}}.")
    return families


def _made(
    path: str | Path, recipe: Mapping[str, Any], given: Mapping[str, MeshGeometry], comm: MPI.Comm
) -> list[MeshGeometry]:
    name = recipe["name"]
    if name in given:
        hierarchy, _ = get_level(given[name])
        return [given[name]] if hierarchy is None else list(hierarchy)
    if "radius" in recipe:
        return list(sphere_hierarchy(recipe["radius"], recipe["refinements"], comm))
    if "stored" not in recipe:
        raise ValueError(
            f"{path} cannot make the mesh {name!r} again: it is a level of an extruded hierarchy, or of one that skips "
            f"refinements. Give a mesh of that hierarchy: meshes={{{name!r}: ...}}.")
    with CheckpointFile(str(path), "r", comm=comm) as file:
        mesh = file.load_mesh(recipe["stored"])
    mesh.name = name
    if "marks" in recipe:
        levels = [mesh]
        for places in recipe["marks"]:
            levels.append(refined(levels[-1], None if places is None else marks_at(levels[-1], np.array(places))))
        return levels
    return [mesh] if recipe["refinements"] == 0 else list(MeshHierarchy(mesh, recipe["refinements"]))


def named_space(V: WithGeometry, meshes: StoredMeshes) -> dict[str, Any]:
    """Return a scalar space as plain data, its mesh among the stored ones.

    Raises
    ------
    ValueError
        If its element has no short name.
    """
    for family, degree in _ELEMENTS:
        if FunctionSpace(V.mesh(), family, degree).ufl_element() == V.ufl_element():
            return {"family": family, "degree": degree, "mesh": meshes.place_of(V.mesh())}
    raise ValueError(
        f"A file holds spaces of {', '.join(f'{family}{degree}' for family, degree in _ELEMENTS)}; received "
        f"{V.ufl_element()}. Take one of these.")


def space_named(description: Mapping[str, Any], meshes: Sequence[Sequence[MeshGeometry]]) -> WithGeometry:
    """Return the space that :func:`named_space` described, on meshes of :func:`made_meshes`."""
    number, level = description["mesh"]
    return FunctionSpace(meshes[number][level], description["family"], description["degree"])
