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

from ctrlnet.fields.pixels import PixelProjection, checked_images
from ctrlnet.operators.intergrid import Linear, Transfer

__all__ = ["PixelMap", "averaged_pixels", "projection_to", "transferred_pixels"]


class PixelMap:
    """A sparse matrix from the pixels of an image to the nodal values of a space.

    Parameters
    ----------
    V, pixel_shape
        As those of :class:`~ctrlnet.transfer.PixelProjection`.
    matrix
        (nodes owned by this rank, pixels).
    """

    def __init__(self, V: WithGeometry, pixel_shape: Sequence[int], matrix: sparse.csr_array):
        self.V, self.pixel_shape, self.matrix = V, tuple(pixel_shape), matrix

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the nodal values (owned nodes, n) of images (n, *pixel_shape), in the images' own unit."""
        images = checked_images(images, self.pixel_shape)
        return self.matrix @ images.reshape(len(images), -1).T.astype(float, order="C")


def projection_to(
    V: WithGeometry, pixel_shape: Sequence[int], given: PixelProjection | PixelMap | None = None
) -> PixelProjection | PixelMap:
    """Return the given map of pixels, or by default their projection to V.

    Raises
    ------
    ValueError
        If the map is one of other pixels or to another space.
    """
    if given is None:
        return PixelProjection(V, pixel_shape)
    if given.V != V or tuple(given.pixel_shape) != tuple(pixel_shape):
        raise ValueError(
            f"The images of {tuple(pixel_shape)} pixels are needed on {V}, but the map of pixels takes "
            f"{tuple(given.pixel_shape)} pixels to {given.V}. Build it for the network's own space."
        )
    return given


def averaged_pixels(V: WithGeometry, pixel_shape: Sequence[int], factor: int) -> PixelMap:
    """Return the map that averages blocks of ``factor`` pixels along every axis and projects what is left to V.

    Raises
    ------
    ValueError
        If the pixel counts are not multiples of ``factor``, or as :class:`~ctrlnet.transfer.PixelProjection`.
    """
    if not isinstance(factor, int) or factor < 1 or any(p % factor for p in pixel_shape):
        raise ValueError(
            f"Blocks of {factor!r} pixels do not divide images of {tuple(pixel_shape)} pixels. Choose a positive "
            "integer that divides every pixel count."
        )
    coarse = PixelProjection(V, tuple(p // factor for p in pixel_shape))
    axes = [sparse.csr_array(np.kron(np.eye(p // factor), np.full((1, factor), 1 / factor))) for p in pixel_shape]
    averaging = reduce(lambda a, b: sparse.kron(a, b, format="csr"), axes)
    return PixelMap(V, pixel_shape, sparse.csr_array(coarse.matrix @ averaging))


def transferred_pixels(
    through: PixelProjection | PixelMap, V: WithGeometry, transfer: Transfer | None = None
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
