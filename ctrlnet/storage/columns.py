"""The course of an optimisation as columns of numbers: in a file, and as text."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctrlnet.storage.atomic import written_whole

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["columns_of", "rows_of", "write_csv"]


def columns_of(rows: Sequence) -> dict[str, np.ndarray]:
    """Return the columns of dataclass rows: a field's name, or ``field.key`` of a field that is a mapping.

    A row that lacks a key has NaN there.
    """
    out: dict[str, np.ndarray] = {}
    for name in (f.name for f in fields(rows[0]) if f.compare) if rows else ():
        entries = [getattr(row, name) for row in rows]
        if any(isinstance(entry, Mapping) for entry in entries):
            for key in sorted({key for entry in entries for key in entry}):
                out[f"{name}.{key}"] = np.array([entry.get(key, np.nan) for entry in entries])
        else:
            out[name] = np.array(entries)
    return out


def rows_of(kind: Callable, columns: Mapping[str, np.ndarray]) -> list:
    """Return the rows, of a dataclass, whose columns these are."""
    count = max((len(column) for column in columns.values()), default=0)
    rows: list[dict] = [{} for _ in range(count)]
    for name, column in columns.items():
        outer, dot, key = name.partition(".")
        for row, value in zip(rows, column.tolist(), strict=True):
            if not dot:
                row[outer] = value
            elif not np.isnan(value):
                row.setdefault(outer, {})[key] = value
    return [kind(**row) for row in rows]


def write_csv(path: str | Path, rows: Sequence, comm: MPI.Comm | None = None) -> Path:
    """Write dataclass rows, such as ``history.iterations``, as a table of comma-separated values, whole or not at all.

    Parameters
    ----------
    path
        In a folder that exists.
    rows
        One class of dataclass; a field that is a mapping has a column a key.
    comm
        The ranks that call; the first writes. Default: this process alone.
    """
    columns = columns_of(rows)
    with written_whole(path, comm) as part:
        if comm is None or comm.rank == 0:
            with open(part, "w", newline="") as file:
                table = csv.writer(file)
                table.writerow(columns)
                table.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return Path(path)
