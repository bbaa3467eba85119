"""The versions of what a result was computed with."""

from __future__ import annotations

import platform
from importlib.metadata import version

__all__ = ["versions"]

_PACKAGES = ("firedrake", "pyadjoint-ad", "petsc4py", "numpy", "scipy", "mpi4py", "h5py")


def versions() -> dict[str, str]:
    """Return the versions of Python, ctrlnet and what it stands on."""
    found = {name: version(name) for name in ("ctrlnet", *_PACKAGES)}
    return {"python": platform.python_version()} | found
