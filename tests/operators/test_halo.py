"""What ghost rows cost beside their values: memory that comes back on several ranks too."""

from __future__ import annotations

import gc
import resource
import sys

import pytest
from firedrake import FunctionSpace, RectangleMesh

from ctrlnet import low_order_operators


def peak_memory() -> float:
    """Return the most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parallel(nprocs=2)
def test_operators_that_are_no_longer_used_give_their_memory_back():
    """Of PETSc's objects on several ranks as well: 30 sets of operators, of about 0.5 MiB each, take that of a few."""
    V = FunctionSpace(RectangleMesh(14, 14, 1.0, 1.0, quadrilateral=True), "CG", 1)

    def use(count: int) -> None:
        for _ in range(count):
            assert low_order_operators(V).table.halo.ghosts > 0
        gc.collect()

    use(10)
    before = peak_memory()
    use(30)
    grown = peak_memory() - before
    assert grown < 4, f"{grown:.1f} MiB more after 30 sets of operators"
