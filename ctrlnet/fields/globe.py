r"""Pictures on a sphere: stereographic maps from square pixels to the nodes of a mesh of :math:`|x| = R`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from firedrake.functionspaceimpl import WithGeometry
from scipy import sparse

from ctrlnet.errors import finite
from ctrlnet.fields.nodal_transfer import node_places
from ctrlnet.fields.pixel_map import PixelMap

__all__ = ["globe_pixels"]


def globe_pixels(
    V: WithGeometry, pixel_shape: Sequence[int], centre: Sequence[float] = (1.0, 0.0, 0.0),
    up: Sequence[float] = (0.0, 0.0, 1.0), half_width: float = 1.5,
) -> PixelMap:
    r"""Return the map that puts a picture on the half-sphere around a centre.

    A point x of the sphere is seen from the antipode of the centre c, in the tangent plane at c: with the unit vector
    n = x / |x|,

    .. math:: p = \frac{2}{1 + n\cdot c}\,(n\cdot e,\; n\cdot u),

    e and u the directions right and up there, so that the rim of the half-sphere has :math:`|p| = 2`. The picture
    covers the square :math:`|p|_\infty \le w`; a node takes the bilinear interpolant of the pixels' values at their
    middles, and outside of the picture or of the half-sphere 0.

    Of few nodes, sample a finer level and restrict that: ``transferred_pixels(globe_pixels(fine, shape), V,
    FullWeighting())``.

    Parameters
    ----------
    V
        Scalar space of degree 1 on a mesh of a sphere around the origin.
    pixel_shape
        (rows, columns).
    centre, up
        c, and a direction that is up in the picture; vectors that are not parallel.
    half_width
        w. 1.5, the default, is that of the spherical digits in print; 2 / sqrt(2) is the square inside the rim.

    Raises
    ------
    ValueError
        If the mesh is no sphere around the origin, pictures have no two axes, up is parallel to the centre, or the
        width is not positive.

    Notes
    -----
    Source of the projection: Cohen, Geiger, Koehler and Welling, "Spherical CNNs", 2018, as used without rotations by
    Jiang et al., "Spherical CNNs on unstructured grids", 2019. They also pass through a longitude-latitude grid and
    stretch every picture to the range 0 to 1; this does not.
    """
    mesh = V.mesh()
    if mesh.geometric_dimension != 3 or mesh.topological_dimension != 2:
        raise ValueError(
            f"A globe is a surface in three dimensions, received a mesh of {mesh.topological_dimension} dimensions in "
            f"{mesh.geometric_dimension}. Flat pictures have PixelProjection.")
    shape = tuple(int(p) for p in pixel_shape)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"Pictures on a globe have rows and columns, received pixel_shape = {pixel_shape!r}.")
    if not (finite(half_width) and half_width > 0):
        raise ValueError(f"The half width of a picture must be positive and finite, received {half_width!r}.")
    places = node_places(V)
    radii = np.linalg.norm(places, axis=1)
    low = mesh.comm.allreduce(radii.min(initial=np.inf), op=min)
    high = mesh.comm.allreduce(radii.max(initial=0.0), op=max)
    if not high - low <= 1e-6 * high:
        raise ValueError(
            f"The mesh is no sphere around the origin: its nodes are {low:g} to {high:g} away from it. Make it by "
            "sphere_hierarchy(radius, refinements).")
    c, right, above = _frame(centre, up)
    n = places / high
    facing = n @ c
    scale = 2.0 / np.maximum(1.0 + facing, 1e-3)
    columns = (scale * (n @ right) / half_width + 1) / 2 * shape[1] - 0.5
    rows = (1 - scale * (n @ above) / half_width) / 2 * shape[0] - 0.5
    inside = (facing >= 0) & (np.abs(rows + 0.5 - shape[0] / 2) <= shape[0] / 2) & (
        np.abs(columns + 0.5 - shape[1] / 2) <= shape[1] / 2)
    return PixelMap(V, shape, _bilinear(rows, columns, inside, shape))


def _frame(centre: Sequence[float], up: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit vectors to the centre, to the right of a viewer outside, and up."""
    c, u = np.asarray(centre, dtype=float), np.asarray(up, dtype=float)
    u = u - (u @ c) / max(c @ c, 1e-300) * c
    if not (c.shape == u.shape == (3,) and np.linalg.norm(c) > 0 and np.linalg.norm(u) > 1e-9):
        raise ValueError(f"A picture needs a centre and a direction up across it, received {centre!r} and {up!r}.")
    c, u = c / np.linalg.norm(c), u / np.linalg.norm(u)
    return c, np.cross(u, c), u


def _bilinear(rows: np.ndarray, columns: np.ndarray, inside: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Return the matrix (points, pixels) of bilinear interpolation at positions in pixels, constant beyond middles."""
    number = np.flatnonzero(inside)
    entries = []
    axes = []
    for position, n in ((rows, shape[0]), (columns, shape[1])):
        x = np.clip(position[number], 0, n - 1)
        low = np.minimum(np.floor(x).astype(int), max(n - 2, 0))
        axes.append(((low, 1 - (x - low)), (np.minimum(low + 1, n - 1), x - low)))
    for row, a in axes[0]:
        entries += [(number, row * shape[1] + column, a * b) for column, b in axes[1]]
    at, pixel, weight = (np.concatenate(part) for part in zip(*entries, strict=True))
    return sparse.coo_array((weight, (at, pixel)), (len(rows), shape[0] * shape[1])).tocsr()
