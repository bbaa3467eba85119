r"""Maps from pixels to nodal values that pass through another resolution.

Coarse pixels are averages of fine ones: :func:`averaged_pixels` shows a coarse mesh what a camera of fewer pixels would
give it. Pixels are piecewise constant, and on a mesh finer than they are that is what a network would see: blocks.
:func:`transferred_pixels` makes the image a finite-element function on the mesh of its own resolution first and then
interpolates that to the finer mesh: the function a network was trained to see, sampled more finely.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from firedrake.functionspaceimpl import WithGeometry
from scipy import sparse

from ctrlnet.fields.pixel_map import PixelMap
from ctrlnet.fields.pixels import PixelProjection
from ctrlnet.operators.intergrid import Linear, Transfer

__all__ = ["averaged_pixels", "transferred_pixels"]


def averaged_pixels(V: WithGeometry, pixel_shape: Sequence[int], factor: int) -> PixelMap:
    """Return the map that averages blocks of ``factor`` pixels along every axis and projects what is left to V.

    Raises
    ------
    ValueError
        If the pixel counts are not multiples of ``factor``, or as :class:`~ctrlnet.transfer.PixelProjection`.
    """
    if not isinstance(factor, int | np.integer) or factor < 1 or any(p % factor for p in pixel_shape):
        raise ValueError(
            f"Blocks of {factor!r} pixels do not divide images of {tuple(pixel_shape)} pixels. Choose a positive "
            "integer that divides every pixel count."
        )
    coarse = PixelProjection(V, tuple(p // factor for p in pixel_shape))
    axes = [sparse.csr_array(np.kron(np.eye(p // factor), np.full((1, factor), 1 / factor))) for p in pixel_shape]
    averaging = reduce(lambda a, b: sparse.kron(a, b, format="csr"), axes)
    return PixelMap(V, pixel_shape, sparse.csr_array(coarse.matrix @ averaging))


def transferred_pixels(
    through: PixelMap, V: WithGeometry, transfer: Transfer | None = None
) -> PixelMap:
    r"""Return the map of pixels to V that goes through the nodal values of another map: :math:`Y = T\,\Pi I`.

    Parameters
    ----------
    through
        :math:`\Pi`, to a space on another mesh of the same domain.
    V
        The network's space.
    transfer
        T: a prolongation if V is finer (default: :class:`~ctrlnet.transfer.Linear`), a restriction if it is coarser.

    Raises
    ------
    NestingError
        If the meshes cover different domains.
    """
    transfer = Linear() if transfer is None else transfer
    start, columns, values = transfer.between(through.V, V).getValuesCSR()
    # Ranks own consecutive nodes, in their order.
    first = sparse.vstack(V.mesh().comm.allgather(through.matrix), format="csr")
    whole = sparse.csr_array((values, columns, start), (start.size - 1, first.shape[0]))
    return PixelMap(V, through.pixel_shape, sparse.csr_array(whole @ first))
