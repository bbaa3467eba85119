r"""Galerkin transfer on any pair of nested meshes: :math:`K_H = R K_h P`, projected onto the coarse operators.

The projection is a least-squares fit in an inner product of operators on :math:`V_H`, by default that of their
:class:`~ctrlnet.transfer.Moments`, which says what they do to smooth functions. Each row has a weight: by default 1 at
interior nodes and 0 at the boundary, where a mesh has one. There the operators carry the natural condition, which R
and P do not reproduce, and the rows inside say what the kernel is. On a uniform mesh the fit of the full stencil basis
is then exact and equal to :func:`ctrlnet.transfer.galerkin_stencils`.
"""

from __future__ import annotations

import numpy as np
from firedrake import DirichletBC, Function
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI
from pyadjoint.tape import no_annotations

from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.intergrid import Prolongation, Restriction, check_nested, checked_pair
from ctrlnet.transfer.coefficient_map import CoefficientMap, TransferResidual
from ctrlnet.transfer.inner_products import HilbertSchmidt, Moments

__all__ = ["galerkin", "galerkin_prolongation", "interior_rows"]

_SINGULAR = 1e-10


def galerkin(
    fine: Operators, coarse: Operators, restriction: Restriction | None = None,
    prolongation: Prolongation | None = None, *,
    inner_product: Moments | HilbertSchmidt | None = None, row_weights: Function | None = None,
) -> CoefficientMap:
    r"""Return the map of coefficients :math:`s_h \mapsto s_H` with :math:`\sum_k s_{H,k} D_k \approx R K_h(s_h) P`.

    Parameters
    ----------
    fine, coarse
        Operators on nested meshes; a jump over several levels is allowed. The sets may differ.
    restriction, prolongation
        Default: :class:`~ctrlnet.transfer.FullWeighting` and :class:`~ctrlnet.transfer.Linear`.
    inner_product
        Of the fit. Default: :class:`~ctrlnet.transfer.Moments`.
    row_weights
        w, a Function on the coarse space, not negative. Default: :func:`interior_rows`.

    Raises
    ------
    NestingError
        If the meshes do not nest.
    ValueError
        If the restriction or the prolongation is of another kind, the weights are not a non-negative Function on
        the coarse space or are zero everywhere, or the coarse operators are linearly dependent in the inner
        product.
    """
    V_H, V_h = coarse.space, fine.space
    restriction, prolongation = checked_pair(restriction, prolongation)
    check_nested(V_H, V_h)
    weights = interior_rows(V_H) if row_weights is None else _checked(row_weights, coarse)
    P = prolongation.matrix(V_H, V_h)
    R = restriction.matrix(V_H, V_h)
    matrices = [*coarse.matrices, *(R.matMult(D).matMult(P) for D in fine.matrices)]

    basis, exact = _split((inner_product or Moments()).columns(matrices, weights), coarse)
    G = _products(basis, basis, coarse)
    norms = np.sqrt(np.diag(G))
    _check_independent(G, norms, coarse)
    right = _products(basis, exact, coarse)
    T = np.linalg.solve(G / np.outer(norms, norms), right / norms[:, None]) / norms[:, None]
    fit = _residual(basis, exact, T, coarse)

    basis, exact = _split(HilbertSchmidt().columns(matrices, weights), coarse)
    own = HilbertSchmidt().columns(fine.matrices, interior_rows(V_h))
    return CoefficientMap(
        T, tuple(fine.names), tuple(coarse.names), fit, _residual(basis, exact, T, coarse),
        np.sqrt(np.diag(_products(own, own, fine))), np.sqrt(np.diag(_products(basis, basis, coarse))))


def galerkin_prolongation(coarse: Operators, fine: Operators, *transfers, **settings) -> CoefficientMap:
    r"""Return the map of coefficients :math:`s_H \mapsto s_h` with :math:`R K_h(s_h) P = K_H(s_H)`: coarse to fine.

    Of the fine operators in the span of the :math:`D_j` there is one whose projected Galerkin product is the given
    coarse operator; its coefficients solve a linear system of the size of the operator basis. Parameters and errors as
    in :func:`galerkin`, and:

    Raises
    ------
    SingularTransferError
        If the system is singular; the message names the operators that are not determined.
    """
    return galerkin(fine, coarse, *transfers, **settings).inverse()


@no_annotations
def interior_rows(V: WithGeometry) -> Function:
    """Return the field that is 1 at interior nodes and 0 on the boundary; 1 everywhere on a closed mesh.

    Raises
    ------
    ValueError
        If every node lies on the boundary.
    """
    weights = Function(V).assign(1.0)
    mesh = V.mesh()
    sides = ["on_boundary"] if mesh.comm.allreduce(mesh.exterior_facets.facets.size) else []
    if mesh.extruded and not mesh.extruded_periodic:
        sides += ["bottom", "top"]
    for side in sides:
        DirichletBC(V, 0.0, side).apply(weights)
    if not _total(weights) > 0:
        raise ValueError(
            f"The mesh with {V.dim()} nodes has none inside: its rows do not tell the operators apart from their "
            "boundary conditions. Take a finer coarse mesh, or give row_weights."
        )
    return weights


def _total(f: Function) -> float:
    return f.function_space().mesh().comm.allreduce(float(f.dat.data_ro.sum()))


def _checked(weights: Function, coarse: Operators) -> Function:
    fits = isinstance(weights, Function) and weights.function_space() == coarse.space
    values = weights.dat.data_ro if fits else np.array([np.nan])
    good = coarse.mesh.comm.allreduce(bool(np.isfinite(values).all() and (values >= 0).all()), op=MPI.LAND)
    if not good or not _total(weights) > 0:
        raise ValueError(
            "row_weights must be a Function on the coarse operators' space, not negative and not zero everywhere; "
            f"received {weights!r}. Start from Function(coarse.space).assign(1.0)."
        )
    return weights


def _split(columns: np.ndarray, coarse: Operators) -> tuple[np.ndarray, np.ndarray]:
    return columns[:, : len(coarse)], columns[:, len(coarse) :]


def _products(A: np.ndarray, B: np.ndarray, operators: Operators) -> np.ndarray:
    out = A.T @ B
    operators.mesh.comm.Allreduce(MPI.IN_PLACE, out)
    return out


def _residual(basis: np.ndarray, exact: np.ndarray, T: np.ndarray, coarse: Operators) -> TransferResidual:
    """From the difference itself: that of the squares would lose half the digits."""
    left = exact - basis @ T
    return TransferResidual(_products(exact, exact, coarse), _products(left, left, coarse))


def _check_independent(G: np.ndarray, norms: np.ndarray, coarse: Operators) -> None:
    if not (norms > 0).all():
        empty = ", ".join(n for n, v in zip(coarse.names, norms, strict=True) if not v > 0)
        raise ValueError(
            f"The coarse operators {empty} are zero in the inner product: leave them out, or give "
            "Moments(degree) of their order."
        )
    values, vectors = np.linalg.eigh(G / np.outer(norms, norms))
    if values[0] < _SINGULAR * values[-1]:
        null = vectors[:, values < _SINGULAR * values[-1]]
        involved = np.sqrt((null**2).sum(axis=1)) > 1e-6
        raise ValueError(
            f"The coarse operators {', '.join(n for n, i in zip(coarse.names, involved, strict=True) if i)} are "
            f"linearly dependent on the mesh with {coarse.nodes} nodes: leave one out, or take another inner product."
        )
