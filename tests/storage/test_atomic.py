"""A file is written whole or not at all, by one rank or by all, whatever ends the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from firedrake import COMM_WORLD
from mpi4py import MPI
from support.ranks import on_ranks

from ctrlnet.storage import WriteError, atomic, written_whole


@pytest.fixture
def folder(tmp_path_factory):
    """One empty folder for all ranks."""
    name = COMM_WORLD.bcast(tempfile.mkdtemp() if COMM_WORLD.rank == 0 else None)
    COMM_WORLD.barrier()
    return Path(name)


def write(path, text, **settings):
    with written_whole(path, **settings) as part:
        part.write_text(text)


def files(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_the_last_versions_stay(tmp_path):
    for number in range(5):
        write(tmp_path / "a.txt", str(number), keep=3)
    assert files(tmp_path) == {"a.txt": "4", "a.txt.1": "3", "a.txt.2": "2"}
    write(tmp_path / "a.txt", "5")
    assert files(tmp_path) == {"a.txt": "5", "a.txt.1": "3", "a.txt.2": "2"}
    with pytest.raises(ValueError, match="keep=0"):
        write(tmp_path / "a.txt", "6", keep=0)


def test_the_last_versions_stay_where_a_file_has_one_name_only(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(3):
        write(tmp_path / "a.txt", str(number), keep=2)
    assert files(tmp_path) == {"a.txt": "2", "a.txt.1": "1"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_fails_leaves_all_as_it_was(tmp_path, error):
    write(tmp_path / "a.txt", "old")
    with pytest.raises(error, match="mine"), written_whole(tmp_path / "a.txt", keep=2) as part:
        part.write_text("half")
        raise error("mine")
    assert files(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file(tmp_path, monkeypatch, step):
    write(tmp_path / "a.txt", "old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.txt", "new", keep=2)
    monkeypatch.undo()
    assert files(tmp_path)["a.txt"] == "old" and not list(tmp_path.glob(".*part"))


def test_places_that_cannot_be_written_are_refused_before_the_body(tmp_path):
    (tmp_path / "file").write_text("")
    for path, error in (("none/a.txt", FileNotFoundError), ("", IsADirectoryError), ("file/a", FileNotFoundError)):
        with pytest.raises(error, match=str(tmp_path)), written_whole(tmp_path / path):
            raise AssertionError("the body has run")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    write(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").is_symlink() and files(tmp_path / "elsewhere") == {"b.txt": "new"}


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    synchronised, replace = atomic._synchronised, os.replace
    monkeypatch.setattr(atomic, "_synchronised", lambda path: (order.append(Path(path).name), synchronised(path)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("renamed"), replace(*names)))
    write(tmp_path / "a.txt", "new")
    assert order == [f".a.txt.{os.getpid()}.part", "renamed", tmp_path.name]


KILLED = """
import os, signal, sys
from ctrlnet.storage.atomic import written_whole
with written_whole(sys.argv[1], keep=2) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
    path = tmp_path / "a[1].txt"
    write(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(files(tmp_path)) == 2
    write(path, "new")
    assert files(tmp_path) == {path.name: "new"}


@on_ranks
def test_all_ranks_write_one_file(folder):
    path, comm = folder / "a.h5", COMM_WORLD
    for version in range(2):
        with written_whole(path, comm, keep=2) as part, h5py.File(part, "w", driver="mpio", comm=comm) as file:
            file.create_dataset("x", (comm.size,), float)[comm.rank] = comm.rank + 10 * version
    for name, version in (("a.h5", 1), ("a.h5.1", 0)):
        with h5py.File(folder / name, "r") as file:
            assert np.array_equal(file["x"][:], np.arange(comm.size) + 10 * version)
    comm.barrier()
    assert sorted(p.name for p in folder.iterdir()) == ["a.h5", "a.h5.1"]


@on_ranks
def test_rank_0_alone_writes_for_all(folder):
    with written_whole(folder / "a.txt", COMM_WORLD) as part:
        if COMM_WORLD.rank == 0:
            part.write_text("whole")
    assert files(folder) == {"a.txt": "whole"}


@on_ranks
@pytest.mark.parametrize("what", ["first", "last"])
def test_a_rank_that_fails_ends_the_writing_on_all(folder, what):
    failing = 0 if what == "first" else COMM_WORLD.size - 1
    mine = COMM_WORLD.rank == failing
    with pytest.raises(ZeroDivisionError if mine else WriteError, match="of mine"):
        with written_whole(folder / "a.txt", COMM_WORLD):
            if mine:
                raise ZeroDivisionError("of mine")
    COMM_WORLD.barrier()
    assert not files(folder)


@on_ranks
def test_what_rank_0_cannot_do_all_ranks_are_told(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder"), written_whole(folder / "none" / "a", COMM_WORLD):
        pass
    if COMM_WORLD.rank == 0:
        monkeypatch.setattr(atomic, "_synchronised", lambda path: os.open(path / "none", os.O_RDONLY))
    with pytest.raises(NotADirectoryError) as caught, written_whole(folder / "a.txt", COMM_WORLD):
        pass
    assert caught.value.errno == errno.ENOTDIR
    COMM_WORLD.barrier()
    assert COMM_WORLD.allreduce(len(files(folder)), op=MPI.MAX) == 0
