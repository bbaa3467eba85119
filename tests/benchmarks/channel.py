"""Measuring processes that stay alive and answer requests, so that two programs can be timed in turn.

Each process (each rank of an MPI job) holds a socket of its own and sleeps in it between requests: a rank that
waited in MPI for another one would keep a core busy while the other program is timed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

__all__ = ["Worker", "WorkerError", "serve"]

_START_SECONDS = 300.0


class WorkerError(RuntimeError):
    """A measuring process failed; the message carries its traceback or its exit code."""


class Worker:
    """One measuring program, on one process or on several ranks.

    Parameters
    ----------
    script
        Python file that ends in :func:`serve`.
    arguments
        Its command line; the socket's address is appended.
    ranks
        None: a plain process. Otherwise the number of MPI ranks.
    threads
        OpenMP threads of a process.
    """

    def __init__(self, script: Path, *arguments: str, ranks: int | None = None, threads: int = 1):
        self.name = f"{script.stem} {' '.join(arguments)}".strip()
        self._folder = tempfile.TemporaryDirectory(prefix="bench")
        address = os.path.join(self._folder.name, "socket")
        self._listener = Listener(address, "AF_UNIX", backlog=8)
        self._listener._listener._socket.settimeout(1.0)
        command = [sys.executable, str(script), *arguments, address]
        # Both programs are left to the operating system's scheduler: neither is bound to a core.
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "OMPI_MCA_hwloc_base_binding_policy": "none",
            "PRTE_MCA_hwloc_default_binding_policy": "none", "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        if ranks is not None:
            command = [_mpiexec(), "-n", str(ranks), *command]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._count = ranks or 1
        self._ranks: list[Connection] = []

    def connect(self) -> Worker:
        """Wait until every rank has reported; several workers can start at the same time before that."""
        began, found = time.monotonic(), {}
        while len(found) < self._count:
            try:
                connection = self._listener.accept()
                found[connection.recv()] = connection
            except TimeoutError:
                self._check_alive()
                if time.monotonic() - began > _START_SECONDS:
                    raise WorkerError(f"'{self.name}' did not start within {_START_SECONDS:.0f} s.") from None
        self._ranks = [found[rank] for rank in sorted(found)]
        return self

    def _check_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise WorkerError(f"'{self.name}' ended with exit code {code}; its messages are above.")

    def ask(self, request: str, **arguments):
        """Run a request on all ranks at once and return the list of their answers."""
        for connection in self._ranks:
            connection.send((request, arguments))
        answers = []
        for connection in self._ranks:
            while not connection.poll(5.0):
                self._check_alive()
            good, answer = connection.recv()
            if not good:
                raise WorkerError(f"'{self.name}' failed in {request!r}:\n{answer}")
            answers.append(answer)
        return answers

    def stop(self) -> None:
        """End the process."""
        for connection in self._ranks:
            try:
                connection.send(("stop", {}))
            except OSError:
                pass
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        self._folder.cleanup()


def _mpiexec() -> str:
    """Return the launcher beside this Python, or the one on the path."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise WorkerError("mpiexec was not found, neither beside this Python nor on the path; run 'make install'.")
    return found


def serve(handler: object, rank: int, address: str) -> None:
    """Answer requests, named after the handler's methods, until told to stop."""
    with Client(address, "AF_UNIX") as connection:
        connection.send(rank)
        while True:
            try:
                request, arguments = connection.recv()
            except EOFError:  # the benchmark was interrupted
                return
            if request == "stop":
                return
            try:
                answer = (True, getattr(handler, request)(**arguments))
            except Exception:  # whatever it was, the process that asked reports it
                answer = (False, traceback.format_exc())
            connection.send(answer)
