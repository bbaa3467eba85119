"""PETSc's vectors as fields of a chunk: the parts of a state one after the other, owned nodes only."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc

from ctrlnet.kernels.traced.run import Run

__all__ = ["fields_of", "parts_of", "write"]


def parts_of(run: Run, values: np.ndarray) -> np.ndarray:
    """Return a vector's values as fields, (parts, owned nodes, C, images)."""
    return values.reshape(run.program.parts, run.mesh.owned, run.primitives.features, run.images)


def fields_of(run: Run, vector: PETSc.Vec, what: str) -> list[np.ndarray]:
    """Return the fields of a vector, with room for ghost rows."""
    fields = [run.buffer(what, -1, k) for k in range(run.program.parts)]
    for f, value in zip(fields, parts_of(run, vector.array_r), strict=True):
        f[: run.mesh.owned] = value
    return fields


def write(run: Run, vector: PETSc.Vec, terms: list[list[tuple[float, np.ndarray]]]) -> None:
    """vector = for each part the sum of factors times fields; without terms, zero."""
    for target, part in zip(parts_of(run, vector.array), terms, strict=True):
        if part:
            run.primitives.weighted_sum([c for c, _ in part], [f for _, f in part], target)
        else:
            target[:] = 0
