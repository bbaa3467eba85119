r"""Nodal values from one mesh of a hierarchy to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from firedrake import Function, SpatialCoordinate, VectorFunctionSpace
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint import stop_annotating
from scipy import sparse
from scipy.spatial import cKDTree

from ctrlnet.fields.inputs import Inputs, with_missing
from ctrlnet.operators.intergrid import FullWeighting, Linear, Transfer

__all__ = ["NodalTransfer", "nearest_nodes", "node_places", "values_of_functions"]


class NodalTransfer:
    r"""A :class:`~ctrlnet.fields.inputs.NodalMap` from nodal values of a space to those of another one.

    To a finer mesh by interpolation, to a coarser one by full weighting with rows that are divided by their sum; the
    identity for one and the same space. Constants are kept.

    Parameters
    ----------
    source, V
        Scalar spaces on meshes of one domain.

    Raises
    ------
    NestingError
        If the meshes cover different domains.
    """

    def __init__(self, source: WithGeometry, V: WithGeometry):
        self.source, self.V = source, V
        self._matrix: sparse.csr_array | None = None
        if source != V:
            finer: Transfer = Linear() if V.dim() >= source.dim() else FullWeighting()
            start, columns, values = finer.between(source, V).getValuesCSR()
            matrix = sparse.csr_array((values, columns, start), (V.dof_dset.size, source.dim()))
            self._matrix = sparse.csr_array(sparse.diags_array(1.0 / matrix.sum(axis=1)) @ matrix)

    def check(self, inputs: Inputs) -> None:
        if inputs.space != self.source:
            raise ValueError(f"This map takes nodal values of {self.source}, received some of {inputs.space}.")

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the nodal values (owned, q, n) in V of (n, q, owned nodes) in the source space. Collective."""
        count, channels, _ = values.shape
        field = np.ascontiguousarray(np.moveaxis(values, 2, 0).swapaxes(1, 2), dtype=float)
        if self._matrix is None:
            return field
        # Ranks own consecutive nodes, in their order.
        comm = self.V.mesh().comm
        whole = field if comm.size == 1 else np.concatenate(comm.allgather(field))
        return (self._matrix @ whole.reshape(len(whole), -1)).reshape(-1, channels, count)

    def nodal(self, inputs: Inputs, start: int, stop: int) -> np.ndarray:
        """Return the nodal values (owned nodes, q, n) of some inputs. Collective."""
        return with_missing(
            self.apply, inputs.values(start, stop), inputs.known(start, stop), self.source.mesh().comm)


def node_places(V: WithGeometry) -> np.ndarray:
    """Return the coordinates (owned nodes, dim) of the nodes of a scalar space."""
    mesh = V.mesh()
    with stop_annotating():
        X = Function(VectorFunctionSpace(mesh, V.ufl_element())).interpolate(SpatialCoordinate(mesh))
    return X.dat.data_ro.reshape(-1, mesh.geometric_dimension).copy()


def nearest_nodes(source: WithGeometry, V: WithGeometry) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map (n, owned nodes of the source) -> (n, owned nodes of V) to the value of the nearest node.

    Of several that are equally near, the one with the lowest coordinates, x first: the same on any number of ranks.
    """
    comm = V.mesh().comm
    places = np.concatenate(comm.allgather(node_places(source)))
    order = np.lexsort(places.round(9).T[::-1])
    here = node_places(V)
    if not len(here):
        return lambda values: np.concatenate(comm.allgather(values), axis=1)[:, :0]
    near, number = cKDTree(places[order]).query(here, k=min(8, len(places)))
    near, number = near.reshape(len(here), -1), number.reshape(len(here), -1)
    equal = near <= near[:, :1] * (1 + 1e-9) + 1e-12
    chosen = order[np.where(equal, number, len(places)).min(axis=1)]
    return lambda values: np.concatenate(comm.allgather(values), axis=1)[:, chosen]


def values_of_functions(functions: Sequence[Function]) -> tuple[WithGeometry, np.ndarray]:
    """Return the scalar space of Functions and their values (n, components, owned nodes).

    Raises
    ------
    ValueError
        If there are none, or they are of several spaces.
    """
    functions = list(functions)
    if not functions:
        raise ValueError("Give at least one Function, received none.")
    space = functions[0].function_space()
    others = {str(f.function_space()) for f in functions if f.function_space() != space}
    if others:
        raise ValueError(f"Functions of one space are needed; received some of {space} and of {', '.join(others)}.")
    values = np.stack([f.dat.data_ro.reshape(-1, space.value_size).T for f in functions])
    return space.collapse() if space.value_size == 1 else _scalar(space), values


def _scalar(space: WithGeometry) -> WithGeometry:
    from firedrake import FunctionSpace

    element = space.ufl_element()
    return FunctionSpace(space.mesh(), element.sub_elements[0])
