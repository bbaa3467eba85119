"""Nested dictionaries of arrays and plain data in a group of an HDF5 file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["read_tree", "to_json", "write_tree"]

_FOLDER = "ctrlnet"
_PLAIN = "plain"  # what is no array, as JSON


def to_json(plain: Any) -> str:
    """Return plain data as JSON; NumPy's numbers are numbers."""
    return json.dumps(plain, default=lambda value: value.item())


def write_tree(path: str | Path, kind: str, version: int, tree: Mapping[str, Any], mode: str = "w") -> None:
    """Write a tree into a file, beside what else is in it.

    Parameters
    ----------
    path
        Of the file.
    kind, version
        What the file is, and in which format.
    tree
        Names without a slash -> arrays, trees, or texts, numbers, lists and None.
    mode
        h5py's: ``"w"`` for a new file, ``"r+"`` for one that is there.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # In memory first: where HDF5 meets a full disk, it cannot close its file any more, and ends the process.
    path = Path(path)
    whole = io.BytesIO(path.read_bytes() if mode == "r+" else b"")
    with h5py.File(whole, mode) as file:
        group = file.create_group(_FOLDER)
        group.attrs["kind"], group.attrs["format"] = kind, version
        _write(group, tree)
    path.write_bytes(whole.getbuffer())


def _write(group: h5py.Group, tree: Mapping[str, Any]) -> None:
    plain = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _write(group.create_group(name), value)
        elif isinstance(value, np.ndarray):
            group.create_dataset(name, data=value)
        else:
            plain[name] = value
    group.create_dataset(_PLAIN, data=to_json(plain))


def read_tree(path: str | Path, kind: str, version: int) -> dict[str, Any]:
    """Return the tree of a file.

    Parameters
    ----------
    kind
        What the file must be.
    version
        The newest format that is understood.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not whole, is something else, or is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with h5py.File(path, "r") as file:
            group = file.get(_FOLDER)
            found = None if group is None else group.attrs.get("kind")
            if found == kind and group.attrs["format"] <= version:
                return _read(group)
            number = None if group is None else group.attrs.get("format")
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: it is no HDF5 file, or not all of it is there ({error}). Take another copy."
        ) from error
    if found != kind:
        raise ValueError(f"{path} is no {kind}{'' if found is None else f' but a {found}'}. Give the file of one.")
    raise ValueError(
        f"{path} is of format {number}, and this version of ctrlnet reads formats up to {version}. Take the version "
        "that wrote it, or a later one.")


def _read(group: h5py.Group) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(group[_PLAIN].asstr()[()])
    for name, entry in group.items():
        if name != _PLAIN:
            tree[name] = _read(entry) if isinstance(entry, h5py.Group) else entry[()]
    return tree
