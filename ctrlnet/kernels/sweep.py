r"""What a sweep of a chunk of images through all layers is, and what it may be able to do besides.

With the discrete step :math:`Y_{k+1} = \Phi(Y_k; u_k, h_k)` of a scheme, :math:`u_k` its controls, a sweep knows

* forward: :math:`Y_0 \mapsto Y_N`,
* tangent: :math:`\dot Y_{k+1} = \Phi_Y \dot Y_k + \Phi_u \dot u_k`,
* adjoint: :math:`\lambda_k = \Phi_Y^T \lambda_{k+1}`, with :math:`\Phi_u^T\lambda_{k+1}` the derivative in :math:`u_k`,
* second order: the change of the adjoint along a tangent.

A field of a chunk is (nodes, C, images), image fastest. Images come in multiples of :attr:`Sweep.image_block`; the
caller pads them with zero columns, whose adjoint is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.kernels.layer_controls import LayerControls

__all__ = ["MOST_BLOCKS", "ChunkSweep", "ImageSweep", "Sweep", "Trajectory"]

MOST_BLOCKS = 8  # of a chunk of images, where nothing else limits them


class Trajectory(Protocol):
    """What a forward or tangent sweep of a chunk leaves for the sweeps that follow."""

    @property
    def initial(self) -> np.ndarray:
        """Owned rows of the state at time 0, a view (owned nodes, C, images), to be written before a sweep."""

    @property
    def final(self) -> np.ndarray:
        """Owned rows of the last state, a view; where all states are kept."""

    @property
    def images(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def complete(self, k: int) -> list[np.ndarray]:
        """Return all that state k consists of, as owned rows; a system of several parts has several."""


# A sweep takes the trajectories that it made, no others.
Own = TypeVar("Own", bound=Trajectory)
Taken = TypeVar("Taken", bound=Trajectory, contravariant=True)


class Sweep(Protocol[Own]):
    """The four sweeps of one scheme and one right-hand side on one mesh.

    Every derivative is this rank's part of it; sums over ranks are the caller's.
    """

    @property
    def features(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def image_block(self) -> int: ...

    @property
    def most_blocks(self) -> int: ...

    @property
    def chunkwise(self) -> ChunkSweep[Own] | None: ...

    @property
    def imagewise(self) -> ImageSweep[Own] | None: ...

    def trajectory(self, layers: int, images: int, keep: bool = True) -> Own:
        """Return zeroed storage; without ``keep`` that of two states, for a forward sweep alone.

        Raises
        ------
        ValueError
            If the images are no multiple of the block.
        """

    def trajectory_bytes(self, layers: int, images: int) -> int:
        """Return the size of a trajectory with everything kept."""

    def field(self, images: int) -> np.ndarray:
        """Return a zero field of this rank's nodes, (owned nodes, C, images)."""

    def forward(self, controls: LayerControls, h: np.ndarray, trajectory: Own) -> np.ndarray:
        """Propagate ``trajectory.initial`` by steps h (layers,); return the owned rows of the final state, a view."""

    def adjoint(self, controls: LayerControls, h: np.ndarray, trajectory: Own, lam: np.ndarray) -> LayerControls:
        r"""Run the transposed sweep from :math:`\lambda_N` (``lam``, overwritten by :math:`\lambda_0`)."""

    def adjoint_step(
        self, controls: LayerControls, h: np.ndarray, pair: Own, adjoints: list[np.ndarray | None]
    ) -> LayerControls:
        """Run the adjoint of one step of several that follow, backwards; ``pair`` is the trajectory of the step alone.

        Controls, h and the result have one step's rows. ``adjoints`` are those of all parts of the state after the step
        (None: zero), in the order of :meth:`Trajectory.complete`, and are overwritten by those of the state before it.
        """

    def tangent(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: Own, tangent: Own,
    ) -> np.ndarray:
        r"""Propagate a perturbation of (controls, Y_0) along a trajectory; return the owned rows of
        :math:`\dot Y_N`, a view. ``tangent.initial`` holds :math:`\dot Y_0`."""

    def second_order(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: Own, tangent: Own,
        lam: np.ndarray, dlam: np.ndarray,
    ) -> LayerControls:
        r"""Differentiate the adjoint sweep along a tangent; return the change of its derivative.

        ``lam`` and ``dlam`` hold :math:`\lambda_N, \dot\lambda_N` and are overwritten by
        :math:`\lambda_0, \dot\lambda_0`.
        """


class ChunkSweep(Protocol[Taken]):
    """The ability to run several chunks, to their features and back, in one call of the kernels."""

    def forward_chunks(
        self, controls: LayerControls, h: np.ndarray, trajectories: Sequence[Taken], readout: RowProduct
    ) -> np.ndarray:
        """Propagate the initial states of trajectories of equally many images and read their final states out.

        Parameters
        ----------
        readout
            The map from fields (owned nodes, C, images) to features (readout nodes, C, images) in double precision.

        Returns
        -------
        numpy.ndarray
            The features (readout nodes * C, chunks * images).
        """

    def adjoint_chunks(
        self, controls: LayerControls, h: np.ndarray, trajectories: Sequence[Taken], readout: RowProduct,
        dfeatures: np.ndarray,
    ) -> LayerControls:
        """Run the transposed sweep of several trajectories from the adjoint of their features; return the sum.

        Parameters
        ----------
        readout
            The transpose of that of :meth:`forward_chunks`.
        dfeatures
            Shape (readout nodes * C, images), in double precision; the last chunk may have fewer images than columns.
        """


class ImageSweep(Protocol[Taken]):
    """The ability to give every image's derivative by itself."""

    def adjoint_each(
        self, controls: LayerControls, h: np.ndarray, trajectory: Taken, lam: np.ndarray
    ) -> LayerControls:
        """Run the transposed sweep as :meth:`Sweep.adjoint` does; the result's arrays have a last axis of images."""
