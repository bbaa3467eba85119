"""The outcome of a run on disk: one JSON file with its figures, settings and versions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["RESULTS", "write_results"]

RESULTS = "results.json"

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
    OSError
        If the file cannot be written; on every rank.
    """
    for name, figure in figures.items():
        if not isinstance(figure, (int, float)) or isinstance(figure, bool):
            raise ValueError(f"The figure {name!r} must be a number, received {figure!r}.")
    from mpi4py import MPI  # here, because it starts MPI

    from ctrlnet.storage.atomic import on_root, written_whole  # here, because its room imports Firedrake,
    from ctrlnet.storage.versions import versions  # which reads arguments

    comm = MPI.COMM_WORLD if comm is None else comm
    path = Path(folder) / RESULTS
    on_root(comm, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    with written_whole(path, comm) as part:
        if comm.rank == 0:
            # JSON knows no NaN: a figure that does not exist is null.
            clean = {k: v if math.isfinite(v) else None for k, v in figures.items()}
            content = {"figures": clean, "settings": dict(settings), "versions": versions(), "ranks": comm.size} | extra
            part.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return path
