"""Columns that are images: each image's scores are integrals of its state, shared out among the mesh's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ctrlnet.fields.targets import ImageTargets
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import KeptTerms, ReadInKernels, Terms
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss

__all__ = ["ImageColumns", "ImageReading", "Integrating"]


class Integrating(Protocol):
    """A readout whose features are integrals: F = R Y(T), summed over the mesh's ranks."""

    @property
    def in_kernels(self) -> ReadInKernels: ...

    def restrict(self, Y: np.ndarray) -> np.ndarray:
        """Return the features (features, images), in double, of a chunk Y (owned, C, images), summed over ranks."""

    def restrict_adjoint(self, dF: np.ndarray, out: np.ndarray) -> None:
        """Write the adjoint state at time T, V*: dF (features, images) -> out (owned, C, images)."""


class ImageReading:
    """Columns that are images; each rank of the mesh takes its share of a chunk's images.

    Parameters
    ----------
    readout
        R and its transpose.
    chunks, split
        The images of this ensemble member, and who has which.
    """

    def __init__(self, readout: Integrating, chunks: Sequence[Chunk], split: ImageSplit):
        self._readout, self._split = readout, split
        self._edges = np.cumsum([0, *(len(self._mine(chunk)) for chunk in chunks)])

    @property
    def in_kernels(self) -> ReadInKernels:
        return self._readout.in_kernels

    def _mine(self, chunk: Chunk) -> range:
        """Return the numbers in the chunk of this rank's images."""
        return range(chunk.images)[self._split.share(chunk.images)]

    def own(self, chunk: Chunk) -> slice:
        return slice(*self._edges[chunk.number : chunk.number + 2])

    def all_features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return np.asarray(self._readout.restrict(state)[:, : chunk.images], dtype=float)

    def features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return self.all_features(chunk, state)[:, self._split.share(chunk.images)]

    def pull_all(self, lam: np.ndarray, dfeatures: np.ndarray) -> None:
        padded = np.zeros((dfeatures.shape[0], lam.shape[-1]))
        padded[:, : dfeatures.shape[1]] = dfeatures
        self._readout.restrict_adjoint(padded, lam)

    def pull(self, chunk: Chunk, lam: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        self.pull_all(lam, sum(W @ self._split.whole_chunk(g) for W, g in pairs))

    def gathered_scores(self, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
        whole = [np.empty((classes, 0)), *(self._split.whole_chunk(part) for part in parts)]
        return self._split.whole_sample(np.concatenate(whole, axis=1))


class ImageColumns(ImageReading):
    """The images of a sample with its targets.

    Parameters
    ----------
    readout, chunks, split
        See :class:`ImageReading`.
    targets
        Of all images of the sample.
    most_bytes
        See :class:`~ctrlnet.objective.columns.KeptTerms`.
    """

    def __init__(
        self, readout: Integrating, targets: ImageTargets, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int
    ):
        super().__init__(readout, chunks, split)
        self.targets, self.weights = targets.values, targets.weights / split.count
        self._terms = KeptTerms(chunks, self._made, most_bytes)

    @property
    def kept_bytes(self) -> int:
        return self._terms.nbytes

    @property
    def by_image(self) -> ImageColumns:
        return self

    def _made(self, chunk: Chunk) -> Terms:
        numbers = chunk.start + np.array(self._mine(chunk), dtype=int)
        return Terms(self.targets[..., numbers], self.weights[numbers], numbers)

    def terms(self, chunk: Chunk) -> Terms:
        return self._terms.of(chunk)

    def shares(
        self, chunk: Chunk, state: np.ndarray, other: ImageColumns, other_state: np.ndarray, loss: Loss,
        W: np.ndarray, beta: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each node's term of the scores' integrals, by the loss's derivative midway between the scores."""
        terms = self.terms(chunk)
        F = (self.features(chunk, state) + other.features(chunk, other_state)) / 2
        g = loss.gradient(W.T @ F + beta[:, None], terms.targets, terms.weights)

        def of_nodes(columns: ImageColumns, Y: np.ndarray) -> np.ndarray:
            lam = np.empty_like(Y)
            columns.pull(chunk, lam, (W, g))
            return np.einsum("nci,nci->n", lam, Y, dtype=float)

        return of_nodes(self, state), of_nodes(other, other_state)

    def all_terms(self) -> Terms:
        return self._terms.together()
