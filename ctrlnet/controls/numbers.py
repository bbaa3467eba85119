"""The space of some numbers: controls that belong to no mesh and no time."""

from __future__ import annotations

from functools import cache

from firedrake import COMM_SELF, UnitIntervalMesh, VectorFunctionSpace
from firedrake.functionspaceimpl import WithGeometry
from firedrake.mesh import MeshGeometry

from ctrlnet.controls.own_meshes import own_mesh

__all__ = ["numbers_space"]


@cache
def numbers_space(count: int) -> WithGeometry:
    """Return the space of so many numbers, one object for all that ask, and each rank its own copy of a Function.

    Its mesh is the unit interval with one cell, so that ``inner(u, u) * dx`` is the sum of the squares.
    """
    return VectorFunctionSpace(_mesh(), "DG", 0, dim=count)


@cache
def _mesh() -> MeshGeometry:
    return own_mesh(UnitIntervalMesh(1, comm=COMM_SELF), "ctrlnet_numbers")

