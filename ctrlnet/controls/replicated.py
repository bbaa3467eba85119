"""Controls that every rank holds the whole of, as pyadjoint's optimisers hand them to PETSc on all ranks.

Functions of time live on ``COMM_SELF``, a classifier on all ranks. One vector of PETSc takes both if rank 0 owns the
entries of the former, as it does those of Firedrake's "Real" space, and gives them to the others.
"""

from __future__ import annotations

from typing import Any

from firedrake import Cofunction, Function
from firedrake.adjoint_utils import FunctionMixin
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["replicated"]


def replicated(f: Any, comm: MPI.Comm) -> Any:
    """Return a Function or Cofunction that shares f's values, and whose PETSc vector has its entries once in ``comm``.

    It is f itself where that is so already: on one rank, or if f's mesh is distributed.
    """
    if comm.size == f.function_space().mesh().comm.size:
        return f
    return _types(comm)[isinstance(f, Cofunction)](f.function_space(), val=f.dat)


_TYPES = MPI.Comm.Create_keyval()  # they are kept with their communicator, as long as it lives


def _types(comm: MPI.Comm) -> tuple[type[Function], type[Cofunction]]:
    """Return the two types for some ranks; types, since Firedrake copies a Function by its type alone."""
    types: Any = comm.Get_attr(_TYPES)
    if types is None:
        types = (type("ReplicatedFunction", (_Replicated, Function), {"ranks": comm}),
                 type("ReplicatedCofunction", (_Replicated, Cofunction), {"ranks": comm}))
        comm.Set_attr(_TYPES, types)
    return types


class _Replicated(FunctionMixin):
    """What pyadjoint asks of the types of controls where it differs from a Function's."""

    ranks: MPI.Comm
    dat: Any
    copy: Any

    def _ad_to_petsc(self, vec: PETSc.Vec | None = None) -> PETSc.Vec:
        values = self.dat.data_ro.ravel()
        own = values if self.ranks.rank == 0 else values[:0]
        if vec is None:
            vec = PETSc.Vec().createMPI((own.size, values.size), comm=self.ranks)
        vec.array_w[:] = own  # on every rank: it tells PETSc that the vector's norm is another one
        return vec

    def _ad_from_petsc(self, vec: PETSc.Vec) -> None:
        values = self.ranks.bcast(vec.array_r if self.ranks.rank == 0 else None)
        self.dat.data_wo[:] = values.reshape(self.dat.data_ro.shape)

    @classmethod
    def _ad_init_object(cls, obj: Any) -> Any:
        return replicated(obj, cls.ranks)

    def _ad_copy(self) -> Any:
        return self.copy(deepcopy=True)

    def _ad_init_zero(self, dual: bool = False) -> Any:
        return replicated(super()._ad_init_zero(dual=dual), self.ranks)

    def _ad_convert_riesz(self, value: Any, riesz_map: Any = None) -> Any:
        return replicated(super()._ad_convert_riesz(value, riesz_map=riesz_map), self.ranks)
