r"""How a readout turns final states into the terms of a mean, and their adjoints back.

A mean over a sample is a sum over *columns*,

.. math:: J = \sum_c w_c\, \ell(W^T F_c + \beta,\; y_c),

each with features :math:`F_c`, linear in a final state. Where scores are integrals of a state a column is an image;
where every node has scores of its own a column is a node of an image. Losses, the classifier's problem and
linearisations know columns alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ctrlnet.kernels.code.row_product import RowProduct
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.losses import Loss

__all__ = ["Columns", "Features", "ImageTerms", "KeptTerms", "ReadInKernels", "Reading", "Terms"]


@dataclass(frozen=True)
class Terms:
    """What is known of columns before anything is propagated.

    Parameters
    ----------
    targets
        What the scores are compared with, the column the last index.
    weights
        (columns,), in the mean.
    numbers
        (columns,), of each column's image: in the sample, or over several levels.
    """

    targets: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.targets.nbytes + self.weights.nbytes + self.numbers.nbytes

    @classmethod
    def together(cls, parts: Sequence[Terms]) -> Terms:
        """Return the columns of several parts as one."""
        columns = zip(*((p.targets, p.weights, p.numbers) for p in parts), strict=True)
        return cls(*(np.concatenate(column, axis=-1) for column in columns))


@dataclass(frozen=True)
class Features:
    """Features of this rank's columns, with what a loss needs besides.

    Parameters
    ----------
    values
        (features, columns).
    terms
        What is known of these columns.
    """

    values: np.ndarray
    terms: Terms

    @property
    def targets(self) -> np.ndarray:
        return self.terms.targets

    @property
    def weights(self) -> np.ndarray:
        return self.terms.weights

    @property
    def numbers(self) -> np.ndarray:
        return self.terms.numbers

    def reweighted(self, factor: float, first: int) -> Features:
        """Return the features as a share of a larger mean: weights times a factor, images numbered from ``first``."""
        terms = replace(self.terms, weights=factor * self.weights, numbers=first + self.numbers)
        return replace(self, terms=terms)

    @classmethod
    def together(cls, parts: Sequence[Features]) -> Features:
        """Return the columns of several parts as one."""
        return cls(np.concatenate([p.values for p in parts], axis=1), Terms.together([p.terms for p in parts]))


@dataclass(frozen=True)
class ReadInKernels:
    """One rank's part of a readout R and of its transpose, for kernels that run several chunks in one call.

    Parameters
    ----------
    forward
        (owned nodes, C, images) -> (readout nodes, C, images) in double precision.
    adjoint
        Its transpose, from double precision to the states'.
    """

    forward: RowProduct
    adjoint: RowProduct


class Reading(Protocol):
    r"""The maps from final states to the columns that this rank has, chunk by chunk, and back.

    Attributes
    ----------
    in_kernels
        The readout as kernels take it that run all chunks in one call; None where they cannot.
    """

    @property
    def in_kernels(self) -> ReadInKernels | None: ...

    def own(self, chunk: Chunk) -> slice:
        """Return the place of a chunk's columns among all that this rank has."""

    def features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        """Return the features (features, columns), in double, of a final state (owned, C, images or more)."""

    def pull(self, chunk: Chunk, lam: np.ndarray, *pairs: tuple[np.ndarray, np.ndarray]) -> None:
        r"""Write :math:`\lambda_N`, the derivative in the final state, (owned, C, images or more).

        Parameters
        ----------
        pairs
            Weights :math:`W_a` (features, K) and adjoints :math:`g_a` of the scores of this rank's columns (K,
            columns): :math:`\lambda_N` is the transposed readout of :math:`\sum_a W_a g_a`.
        """

    def gathered_scores(self, parts: Sequence[np.ndarray], classes: int) -> np.ndarray:
        """Return the scores of the sample from those of this rank's columns of each chunk, (K, columns).

        Where a column is an image, (K, images) on every rank; where it is a node of one, (K, owned nodes, images) of
        this ensemble member's images.
        """


class Columns(Reading, Protocol):
    """The columns of one sample that this rank has, with what is known of them.

    Attributes
    ----------
    by_image
        The ability to tell images apart; None where a column is no image.
    """

    @property
    def kept_bytes(self) -> int:
        """Bytes of targets and weights that are kept once they are made."""

    @property
    def by_image(self) -> ImageTerms | None: ...

    def terms(self, chunk: Chunk) -> Terms:
        """Return what is known of a chunk's columns."""

    def all_terms(self) -> Terms:
        """Return what is known of the columns of all chunks."""

    def shares(
        self, chunk: Chunk, state: np.ndarray, other: Any, other_state: np.ndarray, loss: Loss, W: np.ndarray,
        beta: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the nodes here and on another mesh have in the difference of a chunk's part of the mean.

        Parameters
        ----------
        state, other_state
            Final states of the same images here and there.
        other
            The columns there, of the same kind.

        Returns
        -------
        here, there
            (owned nodes,) each. Summed over nodes and ranks, there minus here is the mean there minus that here, up to
            the third power of the difference of scores.
        """


class ImageTerms(Protocol):
    """The ability to treat each image by itself."""

    @property
    def targets(self) -> np.ndarray:
        """What all images' scores are compared with, the image the last index, the same on every rank."""

    @property
    def weights(self) -> np.ndarray:
        """All images' weights in the mean, the same on every rank."""

    def all_features(self, chunk: Chunk, state: np.ndarray) -> np.ndarray:
        """Return the features (features, images) of all images of a chunk, on every rank of the mesh."""

    def pull_all(self, lam: np.ndarray, dfeatures: np.ndarray) -> None:
        """Write the derivative in the final state for an adjoint (features, images) of all images of a chunk."""


class KeptTerms:
    """The terms of chunks, kept where they fit a limit, and else made anew each time.

    Parameters
    ----------
    chunks
        Of this ensemble member's images.
    make
        Makes those of one chunk.
    most_bytes
        The most that are kept.
    """

    def __init__(self, chunks: Sequence[Chunk], make: Callable[[Chunk], Terms], most_bytes: int):
        self._chunks, self._make, self._most_bytes = list(chunks), make, most_bytes
        self._kept: dict[int, Terms] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept once it is made."""
        first = self.of(self._chunks[0]).nbytes if self._chunks else 0  # the largest
        return min(self._most_bytes, first * len(self._chunks))

    def of(self, chunk: Chunk) -> Terms:
        if chunk.number in self._kept:
            return self._kept[chunk.number]
        made = self._make(chunk)
        if sum(t.nbytes for t in self._kept.values()) + made.nbytes <= self._most_bytes:
            self._kept[chunk.number] = made
        return made

    def together(self) -> Terms:
        return Terms.together([self.of(chunk) for chunk in self._chunks])
