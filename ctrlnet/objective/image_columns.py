"""Columns that are images: each image's scores are integrals of its state, shared out among the mesh's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ctrlnet.fields.targets import ImageTargets
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import ReadInKernels, Terms, TermsOfChunks
from ctrlnet.objective.image_split import ImageSplit

__all__ = ["ImageColumns", "Integrating"]


class Integrating(Protocol):
    """A readout whose features are integrals: F = R Y(T), summed over the mesh's ranks."""

    @property
    def in_kernels(self) -> ReadInKernels: ...

    def restrict(self, Y: np.ndarray) -> np.ndarray:
        """Return the features (features, images), in double, of a chunk Y (owned, C, images), summed over ranks."""

    def restrict_adjoint(self, dF: np.ndarray, out: np.ndarray) -> None:
        """Write the adjoint state at time T, V*: dF (features, images) -> out (owned, C, images)."""


class ImageColumns(TermsOfChunks):
    """The columns of a readout by integrals; each rank of the mesh takes its share of a chunk's images.

    Parameters
    ----------
    readout
        R and its transpose.
    targets
        Of all images of the sample.
    chunks, split
        The images of this ensemble member, and who has which.
    most_bytes
        See :class:`~ctrlnet.objective.columns.TermsOfChunks`.
    """

    def __init__(
        self, readout: Integrating, targets: ImageTargets, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int
    ):
        super().__init__(chunks, most_bytes)
        self._readout, self._split = readout, split
        self.targets, self.weights = targets.values, targets.weights / split.count

    @property
    def in_kernels(self) -> ReadInKernels:
        return self._readout.in_kernels

    @property
    def by_image(self) -> ImageColumns:
        return self

    def _mine(self, chunk: Chunk) -> slice:
        return self._split.share(chunk.images)

    def _count(self, chunk: Chunk) -> int:
        mine = self._mine(chunk)
        return mine.stop - mine.start

    def _made(self, chunk: Chunk) -> Terms:
        numbers = np.arange(chunk.start, chunk.stop)[self._mine(chunk)]
        return Terms(self.targets[..., numbers], self.weights[numbers], numbers)

    def all_features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return np.asarray(self._readout.restrict(state)[:, : chunk.images], dtype=float)

    def features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        return self.all_features(chunk, state)[:, self._mine(chunk)]

    def pull_all(self, lam: np.ndarray, dfeatures: np.ndarray) -> None:
        padded = np.zeros((dfeatures.shape[0], lam.shape[-1]))
        padded[:, : dfeatures.shape[1]] = dfeatures
        self._readout.restrict_adjoint(padded, lam)

    def pull(self, chunk: Chunk, lam: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        self.pull_all(lam, sum(W @ self._split.whole_chunk(g) for W, g in pairs))

    def gathered_scores(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        whole = [self._split.whole_chunk(part) for part in parts]
        return self._split.whole_sample(np.concatenate(whole, axis=1))
