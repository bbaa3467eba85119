"""How a sample is cut into chunks of images that stay in cache through all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ctrlnet.image_split import ImageSplit
from ctrlnet.sample import Sample

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
    labels, weights
        Classes of those images and their weights in the mean.
    """

    number: int
    start: int
    stop: int
    mine: slice
    own: slice
    labels: np.ndarray
    weights: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """Numbers in the sample of this rank's images."""
        return np.arange(self.start, self.stop)[self.mine]


@dataclass(frozen=True)
class Features:
    """Features of this rank's images: ``values`` (features, images), labels, weights (1/n), numbers in the sample."""

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    numbers: np.ndarray


def chunk_size(sweep, split: ImageSplit) -> int:
    """Return the images of a chunk, a multiple of the sweep's block, the same on every rank. Collective."""
    block = sweep.image_block
    bytes_an_image = sweep.field(block).nbytes // block
    fitting = split.comm.allreduce(max(1, _BYTES // max(1, bytes_an_image) // block), op=MPI.MIN)
    needed = split.comm.allreduce(-(-(split.last - split.first) // block), op=MPI.MAX)
    return block * min(fitting, sweep.most_blocks, max(needed, 1))


def chunks_of(sample: Sample, split: ImageSplit, size: int) -> list[Chunk]:
    """Return this member's images in chunks of at most ``size``."""
    out, before = [], 0
    for number, start in enumerate(range(split.first, split.last, size)):
        stop = min(split.last, start + size)
        mine = split.share(stop - start)
        labels = sample.labels[start:stop][mine]
        own = slice(before, before + labels.size)
        before = own.stop
        out.append(Chunk(number, start, stop, mine, own, labels, np.full(labels.size, 1.0 / len(sample))))
    return out
