"""Names for the meshes that ctrlnet makes, under which Firedrake's CheckpointFile keeps and finds Functions on them."""

from __future__ import annotations

import numpy as np
from firedrake.mesh import MeshGeometry
from petsc4py import PETSc

__all__ = ["own_mesh"]


def own_mesh(mesh: MeshGeometry, name: str) -> MeshGeometry:
    """Name a mesh of ``COMM_SELF`` that is made alike in every process; return it.

    ``CheckpointFile.load_function(mesh, ...)`` reads onto it what was saved on its like in another process, without
    ``load_mesh``: a point of the mesh has the number that it has in the file.
    """
    topology = mesh.topology
    mesh.name, topology.name = name, f"{name}_topology"
    _, count = topology.topology_dm.getChart()
    points = np.arange(count, dtype=PETSc.IntType)
    topology.sfXC = PETSc.SF().create(comm=topology.comm)
    topology.sfXC.setGraph(count, points, np.column_stack([np.zeros_like(points), points]))
    return mesh
