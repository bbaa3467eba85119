"""The outcome of a run on disk: one JSON file with its figures, settings and versions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["write_results"]

def write_results(
    folder: str | Path, figures: Mapping[str, float], settings: Mapping[str, Any], comm: MPI.Comm | None = None,
    **extra: Any,
) -> Path:
    """Write ``results.json`` into a folder, on rank 0, whole or not at all.

    Parameters
    ----------
    folder
        Made if it is not there.
    figures
        One flat name -> number for every figure a run prints.
    settings
        What the run was asked for.
    comm
        The ranks of the run. Default: all.
    extra
        Further plain data, for example histories.

    Raises
    ------
    ValueError
        If a figure is not a number.
    """
    for name, figure in figures.items():
        if not isinstance(figure, (int, float)) or isinstance(figure, bool):
            raise ValueError(f"The figure {name!r} must be a number, received {figure!r}.")
    from mpi4py import MPI  # here, because it starts MPI

    from ctrlnet.storage.versions import versions  # here, because its room imports Firedrake, which reads arguments

    comm = MPI.COMM_WORLD if comm is None else comm
    path = Path(folder) / "results.json"
    if comm.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        # JSON knows no NaN: a figure that does not exist is null.
        clean = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        content = {"figures": clean, "settings": dict(settings), "versions": versions(), "ranks": comm.size} | extra
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1, default=str) + "\n")
        os.replace(part, path)
    comm.barrier()
    return path
