"""Compilation of generated C through PyOP2's compiler and disk cache."""

from __future__ import annotations

import ctypes

from mpi4py import MPI
from pyop2.compilation import load
from pyop2.exceptions import CompilationError

__all__ = ["KernelCompilationError", "compile_text"]

# PyOP2 compiles with -ffast-math, which would fold away the argument reduction of exp and hide NaNs.
_FLAGS = ("-fno-fast-math", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi")


class KernelCompilationError(RuntimeError):
    """The C compiler refused a generated kernel; the message names its log."""


def compile_text(text: str, what: str, comm: MPI.Comm) -> ctypes.CDLL:
    """Return the shared library of C text; rank 0 compiles, the disk cache is shared.

    Raises
    ------
    KernelCompilationError
        If the compiler fails, with the path of its log.
    """
    try:
        return load(text, "c", cppargs=_FLAGS, ldargs=("-lm",), comm=comm)
    except CompilationError as error:
        raise KernelCompilationError(
            f"Compiling {what} failed. Check that the C compiler works ('make doctor') and see its log:\n{error}"
        ) from error
