"""What must be the same on all ranks: compared by checksums, once, where it enters."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["check_same", "check_same_generators"]


def _checksum(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return zlib.crc32(np.ascontiguousarray(value).tobytes(), zlib.crc32(str(value.shape).encode()))
    return zlib.crc32(repr(value).encode())


def check_same(comm: MPI.Comm, what: str, values: Callable[[], Mapping[str, Any]], how: str) -> None:
    """Raise a ValueError on all ranks if values differ between them. Collective.

    Parameters
    ----------
    comm
        The ranks.
    what
        The values are called in the message.
    values
        Returns them by name: arrays or plain data. On one rank it is not called.
    how
        What to do about it.
    """
    if comm.size == 1:
        return
    sums = comm.allgather({name: _checksum(value) for name, value in values().items()})
    for rank, theirs in enumerate(sums):
        differ = [name for name in sums[0] if theirs.get(name) != sums[0][name]]
        if differ:
            raise ValueError(
                f"{what} must be the same on all ranks; {', '.join(differ)} of rank {rank} differ from those of rank "
                f"0. {how}")


def check_same_generators(comm: MPI.Comm, rngs: Sequence[np.random.Generator | None]) -> None:
    """Raise a ValueError on all ranks if generators are in different states. Collective."""
    check_same(
        comm, "Generators of random numbers",
        lambda: {f"generator {k}": rng.bit_generator.state for k, rng in enumerate(rngs) if rng is not None},
        "Seed them alike: np.random.default_rng(0), not default_rng().")
