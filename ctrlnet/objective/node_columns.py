"""Columns that are nodes of images: every node has scores of its own, and stays with the rank that owns it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from ctrlnet.fields.targets import NodalTargets
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import KeptTerms, Terms
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss

__all__ = ["NodeColumns", "NodeReading"]


class NodeReading:
    r"""Columns that are nodes of images: the features of node x of image i are :math:`Y_i(x, T)`.

    Parameters
    ----------
    nodes
        That this rank owns.
    chunks
        Of this ensemble member's images.
    """

    in_kernels = None

    def __init__(self, nodes: int, chunks: Sequence[Chunk]):
        self._nodes = nodes
        self._edges = np.cumsum([0, *(nodes * chunk.images for chunk in chunks)])

    def own(self, chunk: Chunk) -> slice:
        return slice(*self._edges[chunk.number : chunk.number + 2])

    def features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        columns = np.moveaxis(state[:, :, : chunk.images], 1, 0).astype(float, order="C")
        return columns.reshape(state.shape[1], -1)

    def pull(self, chunk: Chunk, lam: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        dfeatures = sum(W @ g for W, g in pairs).reshape(lam.shape[1], lam.shape[0], chunk.images)
        lam[:, :, : chunk.images] = np.moveaxis(dfeatures, 0, 1)
        lam[:, :, chunk.images :] = 0.0

    def gathered_scores(self, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
        empty = np.empty((classes, self._nodes, 0))
        return np.concatenate([empty, *(part.reshape(classes, self._nodes, -1) for part in parts)], axis=2)


class NodeColumns(NodeReading):
    r"""The nodes of a sample's images with their targets.

    With the lumped mass :math:`M_x`, the targets' density m and the integral :math:`N_i` of their normaliser, the
    weight of a column among n images is :math:`w = M_x\, m_i(x) / (n N_i)`; an integral by vertex quadrature.

    Parameters
    ----------
    mass
        (owned nodes,).
    targets
        At the nodes that this rank owns.
    chunks, split
        The images of this ensemble member, and who has which.
    most_bytes
        See :class:`~ctrlnet.objective.columns.KeptTerms`.
    """

    by_image = None

    def __init__(
        self, mass: np.ndarray, targets: NodalTargets, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int
    ):
        super().__init__(mass.size, chunks)
        self._mass, self._targets, self._split = mass, targets, split
        self._terms = KeptTerms(chunks, self._made, most_bytes)

    @property
    def kept_bytes(self) -> int:
        return self._terms.nbytes

    def terms(self, chunk: Chunk) -> Terms:
        return self._terms.of(chunk)

    def all_terms(self) -> Terms:
        return self._terms.together()

    def shares(
        self, chunk: Chunk, state: np.ndarray, other: NodeColumns, other_state: np.ndarray, loss: Loss,
        W: np.ndarray, beta: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each node's weighted loss."""
        def of_nodes(columns: NodeColumns, Y: np.ndarray) -> np.ndarray:
            terms = columns.terms(chunk)
            values = loss.values(W.T @ columns.features(chunk, Y) + beta[:, None], terms.targets)
            return (terms.weights * values).reshape(-1, chunk.images).sum(axis=1)

        return of_nodes(self, state), of_nodes(other, other_state)

    def _made(self, chunk: Chunk) -> Terms:
        span = chunk.start, chunk.stop
        values, density = self._targets.values(*span), self._targets.density(*span)
        weights = self._mass[:, None] * density / (self._split.count * self._divisor(chunk))
        numbers = np.broadcast_to(np.arange(*span), weights.shape)
        return Terms(values.reshape(*values.shape[:-2], -1), weights.ravel(), numbers.ravel())

    def _divisor(self, chunk: Chunk) -> np.ndarray:
        """Return what each image's loss is divided by, (images,)."""
        normaliser = self._targets.normaliser(chunk.start, chunk.stop)
        if normaliser is None:
            return np.ones(chunk.images)
        integral = self._mass @ normaliser
        self._split.mesh_comm.Allreduce(MPI.IN_PLACE, integral)
        if not (integral > 0).all():
            number = chunk.start + int(np.argmin(integral > 0))
            raise ValueError(
                f"The targets of image {number} leave nothing to compare with: their mask, or the field that the error "
                "is relative to, is zero everywhere. Leave the image out, or mend its mask.")
        return integral
