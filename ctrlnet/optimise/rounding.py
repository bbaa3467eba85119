"""The same digits from PETSc's vectors each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from petsc4py import PETSc

__all__ = ["same_digits"]

_OPTIONS = ("vec_mdot_use_gemv", "vec_maxpy_use_gemv")


@contextmanager
def same_digits() -> Iterator[None]:
    """Context in which sums of vectors have the same last digits whatever their places in memory.

    PETSc takes vectors that happen to lie behind each other for a matrix, and BLAS for their products and sums; others
    it goes over one by one, and rounds otherwise. A quasi-Newton run then is not quite the same in every process, while
    one that goes on from a file is to be the same run, and all ranks are to take the same steps. Options that are set
    already stay.
    """
    options = PETSc.Options()
    ours = [name for name in _OPTIONS if not options.hasName(name)]
    for name in ours:
        options.setValue(name, False)
    try:
        yield
    finally:
        for name in ours:
            options.delValue(name)
