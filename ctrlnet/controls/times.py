"""Times of states and of control cells, and the interval mesh of the latter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from firedrake import COMM_SELF, IntervalMesh, Mesh
from firedrake.mesh import MeshGeometry

__all__ = ["checked_times", "divided", "time_mesh"]


def checked_times(times: Sequence[float] | np.ndarray, of: str, T: float) -> np.ndarray:
    """Return times as an array that cannot be written, if they grow from 0 to T.

    Raises
    ------
    ValueError
        If they do not, or are fewer than two.
    """
    out = np.array(times, dtype=float)
    if out.ndim != 1 or out.size < 2 or out[0] != 0 or not np.isfinite(out).all() or not (np.diff(out) > 0).all():
        raise ValueError(
            f"Times of {of} are at least two numbers that start at 0 and grow; received {np.asarray(times)!r}.")
    if abs(out[-1] - T) > 1e-12 * T:
        raise ValueError(f"Times of {of} run from 0 to T = {T:g}; received ones that end at {out[-1]:g}.")
    out.setflags(write=False)
    return out


def divided(times: np.ndarray, parts: int) -> np.ndarray:
    """Return times with each interval divided into equal parts."""
    within = times[:-1, None] + np.diff(times)[:, None] * (np.arange(parts) / parts)
    return checked_times(np.append(within.ravel(), times[-1]), "intervals", times[-1])


def time_mesh(T: float, cells: int, ends: np.ndarray | None) -> MeshGeometry:
    """Return the interval mesh of so many equal cells, or of those between the given times, on every rank the whole."""
    mesh = IntervalMesh(cells, T, comm=COMM_SELF)
    if ends is None:
        return mesh
    plex = mesh.topology_dm
    places = plex.getCoordinatesLocal()  # refinement goes by these
    places.array[:] = np.interp(places.array_r, T / cells * np.arange(cells + 1), ends)
    plex.setCoordinatesLocal(places)
    for label in ("pyop2_core", "pyop2_owned", "pyop2_ghost"):
        plex.removeLabel(label)
    return Mesh(plex, reorder=False, comm=COMM_SELF)
