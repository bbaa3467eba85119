"""How a sample is cut into chunks of images that stay in cache through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

from ctrlnet.kernels.sweep import Sweep
from ctrlnet.objective.image_split import ImageSplit

__all__ = ["Chunk", "Features", "chunk_size", "chunks_of"]

_BYTES = 2**20  # of one state


@dataclass(frozen=True)
class Chunk:
    """Images ``start`` to ``stop - 1`` of the sample, and this rank's share of them.

    Parameters
    ----------
    number
        Of the chunk, on this ensemble member.
    start, stop
        Numbers in the sample.
    mine
        This rank's columns of the chunk.
    own
        Those columns' place among all images of this rank.
    targets, weights
        What those images' scores are compared with, the image the last index, and their weights in the mean.
    """

    number: int
    start: int
    stop: int
    mine: slice
    own: slice
    targets: np.ndarray
    weights: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """Numbers in the sample of this rank's images."""
        return np.arange(self.start, self.stop)[self.mine]


@dataclass(frozen=True)
class Features:
    """Features of this rank's images, with what a loss needs besides.

    Parameters
    ----------
    values
        (features, images).
    targets
        What the scores are compared with, the image the last index.
    weights
        In the mean.
    numbers
        Of the terms of the mean: in the sample, or over several levels.
    """

    values: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of_chunks(cls, chunks: Sequence[Chunk]) -> Features:
        """Return what is known of the images of chunks before they are propagated: no features yet."""
        targets, weights, numbers = (
            np.concatenate([getattr(chunk, what) for chunk in chunks], axis=-1)
            for what in ("targets", "weights", "numbers"))
        return cls(np.empty((0, weights.size)), targets, weights, numbers)

    def with_values(self, values: np.ndarray) -> Features:
        """Return these images with the given features."""
        return replace(self, values=values)

    @classmethod
    def together(cls, parts: Sequence[Features]) -> Features:
        """Return the images of several parts as one."""
        columns = zip(*((p.values, p.targets, p.weights, p.numbers) for p in parts), strict=True)
        return cls(*(np.concatenate(column, axis=-1) for column in columns))


def chunk_size(sweep: Sweep, split: ImageSplit) -> int:
    """Return the images of a chunk, a multiple of the sweep's block, the same on every rank. Collective."""
    block = sweep.image_block
    bytes_an_image = sweep.field(block).nbytes // block
    fitting = split.comm.allreduce(max(1, _BYTES // max(1, bytes_an_image) // block), op=MPI.MIN)
    needed = split.comm.allreduce(-(-(split.last - split.first) // block), op=MPI.MAX)
    return block * min(fitting, sweep.most_blocks, max(needed, 1))


def chunks_of(targets: np.ndarray, split: ImageSplit, size: int) -> list[Chunk]:
    """Return this member's images in chunks of at most ``size``; all images weigh the same."""
    out, before = [], 0
    for number, start in enumerate(range(split.first, split.last, size)):
        stop = min(split.last, start + size)
        mine = split.share(stop - start)
        own = slice(before, before + mine.stop - mine.start)
        before = own.stop
        weights = np.full(own.stop - own.start, 1.0 / split.count)
        out.append(Chunk(number, start, stop, mine, own, targets[..., start:stop][..., mine], weights))
    return out
