"""How a sample is cut into chunks of images that stay in cache through all layers."""

from __future__ import annotations

from dataclasses import dataclass

from mpi4py import MPI

from ctrlnet.kernels.sweep import Sweep
from ctrlnet.objective.image_split import ImageSplit

__all__ = ["Chunk", "chunk_size", "chunks_of"]

_BYTES = 2**20  # of one state


@dataclass(frozen=True)
class Chunk:
    """Images ``start`` to ``stop - 1`` of the sample; ``number`` counts the chunks of this ensemble member."""

    number: int
    start: int
    stop: int

    @property
    def images(self) -> int:
        return self.stop - self.start


def chunk_size(sweep: Sweep, split: ImageSplit) -> int:
    """Return the images of a chunk, a multiple of the sweep's block, the same on every rank. Collective."""
    block = sweep.image_block
    bytes_an_image = sweep.field(block).nbytes // block
    fitting = split.comm.allreduce(max(1, _BYTES // max(1, bytes_an_image) // block), op=MPI.MIN)
    needed = split.comm.allreduce(-(-(split.last - split.first) // block), op=MPI.MAX)
    return block * min(fitting, sweep.most_blocks, max(needed, 1))


def chunks_of(split: ImageSplit, size: int) -> list[Chunk]:
    """Return this member's images in chunks of at most ``size``."""
    starts = range(split.first, split.last, size)
    return [Chunk(number, start, min(split.last, start + size)) for number, start in enumerate(starts)]
