"""Files that are written whole or not at all, whatever ends the writer."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["WriteError", "on_root", "reserve", "try_to_write", "written_whole"]


_BLOCK = 2**16


class WriteError(OSError):
    """Another rank could not write its part of a file; the message says which, and why."""


@contextmanager
def written_whole(path: str | os.PathLike, comm: MPI.Comm | None = None, keep: int = 1) -> Iterator[Path]:
    """Context that yields the name of a file to write, which takes the place of ``path`` at the end.

    The file is in the same folder. At the end its bytes are brought to the disk, it is renamed, and the folder is
    brought to the disk too: a reader finds the old file or the new one, whole, and so does who comes after a crash. If
    the body raises an exception, the file is removed and ``path`` stays as it was. What a killed writer has left is
    removed by the next one.

    All ranks of the communicator enter and leave together; rank 0 names, renames and removes. They may all write into
    the one file, as parallel h5py does, or rank 0 alone. The file must be closed when the body ends::

        with written_whole("weights.npz", comm) as part:
            if comm.rank == 0:
                with open(part, "wb") as file:
                    numpy.savez(file, s=s)

    Parameters
    ----------
    path
        In a folder that exists. A symbolic link is followed.
    comm
        The ranks that enter. Default: this process alone.
    keep
        How many versions stay: ``path``, and before it ``path.1``, ``path.2``, ...

    Raises
    ------
    ValueError
        If there is no version to keep.
    OSError
        If the folder is missing or cannot be written, the path is a folder, or the disk is full; before the body where
        it can be told. Rank 0's is raised on every rank.
    WriteError
        On the other ranks, if the body raises an exception on one.
    """
    if keep < 1:
        raise ValueError(f"At least one version of a file is kept, received keep={keep!r}.")
    target = Path(os.path.realpath(path))
    part = on_root(comm, lambda: _begun(target))
    failure: BaseException | None = None
    try:
        yield part
    except BaseException as error:  # Ctrl-C too leaves no half of a file
        failure = error
    said = None if failure is None else f"{type(failure).__name__}: {failure}"
    failed = {rank: text for rank, text in enumerate([said] if comm is None else comm.allgather(said)) if text}
    if failed:
        if comm is None or comm.rank == 0:
            part.unlink(missing_ok=True)
        if failure is not None:
            raise failure
        raise WriteError(f"{path} was not written: " + "; ".join(f"rank {r}: {text}" for r, text in failed.items()))
    on_root(comm, lambda: _finished(part, target, keep))


def try_to_write(path: str | os.PathLike, comm: MPI.Comm | None = None) -> None:
    """Raise the OSError that :func:`written_whole` would raise at its start. Collective."""
    def tried() -> None:
        part = _begun(Path(os.path.realpath(path)))
        try:
            part.write_bytes(bytes(4096))
        finally:
            part.unlink(missing_ok=True)

    on_root(comm, tried)


def reserve(path: Path, size: int) -> None:
    """Raise an OSError if there is no room for so many bytes in a file that is about to be written."""
    with open(path, "wb") as file:
        for _ in range(size // _BLOCK + 1):
            file.write(bytes(_BLOCK))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(0)


def on_root(comm: MPI.Comm | None, action: Callable[[], Any]) -> Any:
    """Return on every rank what rank 0 gets from an action, or raise what it raises. Collective."""
    if comm is None:
        return action()
    outcome, error = None, None
    if comm.rank == 0:
        try:
            outcome = action()
        except BaseException as raised:  # Ctrl-C too: the others wait for what rank 0 has to say
            error = raised
    outcome, error = comm.bcast((outcome, error))
    if error is not None:
        raise error
    return outcome


def _begun(target: Path) -> Path:
    """Return a new, empty file beside the target; remove those of writers that are no more."""
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder. Give the name of a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target} cannot be written: there is no folder {target.parent}. Make it first.")
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        writer = left.name[len(target.name) + 2 : -len(".part")]
        if writer.isdecimal() and (int(writer) == os.getpid() or not _lives(int(writer))):
            left.unlink(missing_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.touch()
    return part


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _finished(part: Path, target: Path, keep: int) -> None:
    """Bring the part to the disk and put it in the target's place, which moves back by one version."""
    try:
        _synchronised(part)
        if keep > 1 and target.exists():
            for number in range(keep - 2, 0, -1):
                with suppress(FileNotFoundError):
                    os.replace(_version(target, number), _version(target, number + 1))
            _linked(target, _version(target, 1))
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _synchronised(target.parent)


def _version(target: Path, number: int) -> Path:
    return target.with_name(f"{target.name}.{number}")


def _linked(target: Path, name: Path) -> None:
    """Let the target have another name besides, so that it is there at every moment."""
    link = target.with_name(f".{target.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:  # a file system without links: for a moment the file has its other name alone
        os.replace(target, name)
    else:
        os.replace(link, name)


def _synchronised(path: Path) -> None:
    """Return when what the file or the folder holds is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
