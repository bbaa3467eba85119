r"""Restriction and prolongation between a coarse and a fine mesh, as objects.

Each one is known in two ways: as weights along one axis of a uniform mesh that is refined by halving
(``weights``: offset of the fine node from the coarse node's own place -> weight; tensor products in several
dimensions), and as a sparse matrix between nodal spaces on any two nested meshes (:meth:`matrix`).
At an interior node of a uniform mesh the two are the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from firedrake import (
    Cofunction,
    Function,
    SpatialCoordinate,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    assemble,
    dx,
)
from firedrake.functionspaceimpl import WithGeometry
from petsc4py import PETSc
from pyadjoint import stop_annotating

from ctrlnet.operators import hierarchy
from ctrlnet.operators.forms import lumped_dx
from ctrlnet.operators.hierarchy import NestingError

__all__ = ["Averaging", "FullWeighting", "Injection", "Linear", "NestingError", "PiecewiseConstant", "Prolongation",
           "Restriction", "Transfer", "check_levels", "check_nested", "checked_pair",
           "interpolation_matrix", "lumped_mass"]

_NO_RESTRICTION = "A restriction is needed, received {!r}. Choose Injection(), Averaging() or FullWeighting()."
_NO_PROLONGATION = "A prolongation is needed, received {!r}. Choose PiecewiseConstant() or Linear()."
# Of relative differences that are round-off.
_ROUND_OFF = 1e-9
# A basis function this far below zero belongs to a cell that the point is not in; coordinates from files are rounded.
_OUTSIDE = 1e-6


class Transfer(ABC):
    """A linear map between a coarse and a fine nodal space.

    Attributes
    ----------
    weights
        Along one axis of a uniform mesh, offset of the fine node -> weight.
    """

    weights: ClassVar[Mapping[int, float]]

    def as_restriction(self) -> Restriction:
        """Return the map itself, if it goes from fine to coarse; else raise a ValueError."""
        raise ValueError(_NO_RESTRICTION.format(self))

    def as_prolongation(self) -> Prolongation:
        """Return the map itself, if it goes from coarse to fine; else raise a ValueError."""
        raise ValueError(_NO_PROLONGATION.format(self))

    @abstractmethod
    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix, (target nodes, source nodes)."""

    @abstractmethod
    def between(self, source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
        """Return the matrix from one space to another, which of them is the coarse one being its own business."""


class Prolongation(Transfer):
    """A map V_H -> V_h; its matrix has the shape (fine nodes, coarse nodes)."""

    def as_prolongation(self) -> Prolongation:
        return self

    def between(self, source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
        """Return the matrix from a coarse space to a fine one."""
        return self.matrix(source, target)


class Restriction(Transfer):
    """A map V_h -> V_H; its matrix has the shape (coarse nodes, fine nodes)."""

    def as_restriction(self) -> Restriction:
        return self

    def between(self, source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
        """Return the matrix from a fine space to a coarse one."""
        return self.matrix(target, source)


@dataclass(frozen=True)
class Linear(Prolongation):
    r"""Prolongation by interpolation, V_H -> V_h: the same function on the finer mesh.

    Along one axis of a uniform mesh the weights are 1/2, 1, 1/2.
    """

    weights: ClassVar[Mapping[int, float]] = MappingProxyType({-1: 0.5, 0: 1.0, 1: 0.5})

    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix (fine nodes, coarse nodes)."""
        return interpolation_matrix(coarse, fine)


@dataclass(frozen=True)
class PiecewiseConstant(Prolongation):
    r"""Prolongation of one value to a group of fine nodes, as pixels are prolonged.

    A fine node takes the value of the coarse node whose basis function is largest there; where several are
    equally large, of the one with the lowest coordinates (x first). Along one axis of a uniform mesh the fine
    nodes 2J and 2J + 1 take the value of J, as fine pixels take that of the pixel they were averaged to.
    """

    weights: ClassVar[Mapping[int, float]] = MappingProxyType({0: 1.0, 1: 1.0})

    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix (fine nodes, coarse nodes), one 1 a row."""
        linear = interpolation_matrix(coarse, fine)
        start, columns, values = linear.getValuesCSR()
        rows = np.repeat(np.arange(start.size - 1), np.diff(start))
        keys = [-values.round(9)]
        for axis in range(coarse.mesh().geometric_dimension):
            # The coordinates of columns that other ranks own come with the product.
            scaled = linear.copy()
            with _coordinate(coarse, axis).dat.vec_ro as x:
                scaled.diagonalScale(R=x)
            present = np.where(values == 0.0, 1.0, values)
            keys.append((scaled.getValuesCSR()[2] / present).round(9))
        order = np.lexsort((*keys[::-1], rows))
        chosen = order[np.unique(rows[order], return_index=True)[1]]
        return hierarchy.matrix_from_entries(
            linear, np.arange(chosen.size), columns[chosen], np.ones(chosen.size))


@dataclass(frozen=True)
class Injection(Restriction):
    """Restriction V_h -> V_H to the values at the coarse nodes."""

    weights: ClassVar[Mapping[int, float]] = MappingProxyType({0: 1.0})

    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix (coarse nodes, fine nodes)."""
        return interpolation_matrix(fine, coarse)


@dataclass(frozen=True)
class Averaging(Restriction):
    r"""Restriction V_h -> V_H to the mean over each group of fine nodes that :class:`PiecewiseConstant` makes.

    Along one axis of a uniform mesh the weights are 1/2, 1/2, as for the average of two pixels.
    """

    weights: ClassVar[Mapping[int, float]] = MappingProxyType({0: 0.5, 1: 0.5})

    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix (coarse nodes, fine nodes); its rows sum to one."""
        groups = _transposed(PiecewiseConstant().matrix(coarse, fine))
        ones, size = groups.createVecs()
        ones.set(1.0)
        groups.mult(ones, size)
        size.reciprocal()
        groups.diagonalScale(L=size)
        return groups


@dataclass(frozen=True)
class FullWeighting(Restriction):
    r"""Restriction :math:`M_H^{-1} P^T M_h`, V_h -> V_H: the adjoint of :class:`Linear` in the lumped L2 products.

    The integral is kept exactly, and so are constants where the meshes nest. The levels of a curved surface differ in
    area, and a constant changes by as much: there :class:`Averaging` keeps constants, and this the integral. Along one
    axis of a uniform mesh the weights are 1/4, 1/2, 1/4, which in d dimensions is Firedrake's ``restrict`` over
    :math:`2^d`.
    """

    weights: ClassVar[Mapping[int, float]] = MappingProxyType({-1: 0.25, 0: 0.5, 1: 0.25})

    def matrix(self, coarse: WithGeometry, fine: WithGeometry) -> PETSc.Mat:
        """Return the matrix (coarse nodes, fine nodes); where the meshes nest, its rows sum to one."""
        transpose = _transposed(interpolation_matrix(coarse, fine))
        with lumped_mass(coarse).dat.vec_ro as M_H, lumped_mass(fine).dat.vec_ro as M_h:
            inverse = M_H.copy()
            inverse.reciprocal()
            transpose.diagonalScale(L=inverse, R=M_h)
        return transpose


def checked_pair(
    restriction: Transfer | None, prolongation: Transfer | None
) -> tuple[Restriction, Prolongation]:
    """Return the two, by default full weighting and linear interpolation.

    Raises
    ------
    ValueError
        If one of them is of another kind.
    """
    restriction = FullWeighting() if restriction is None else restriction
    prolongation = Linear() if prolongation is None else prolongation
    try:
        down = restriction.as_restriction()
    except AttributeError:
        raise ValueError(_NO_RESTRICTION.format(restriction)) from None
    try:
        up = prolongation.as_prolongation()
    except AttributeError:
        raise ValueError(_NO_PROLONGATION.format(prolongation)) from None
    return down, up


def lumped_mass(V: WithGeometry) -> Cofunction:
    """Return the diagonal of the lumped mass, in V*."""
    with stop_annotating():
        return assemble(TestFunction(V) * lumped_dx())


def interpolation_matrix(source: WithGeometry, target: WithGeometry) -> PETSc.Mat:
    """Return the matrix of interpolation, (target nodes, source nodes), a copy of the caller's own.

    Its entries are the values of basis functions, none of them negative.

    Raises
    ------
    NestingError
        If the source mesh does not cover the target's nodes.
    """
    if _dimensions(source) != _dimensions(target):
        raise hierarchy.not_covered(source, target)
    matrix = hierarchy.interpolation_matrix(source, target)
    # Firedrake takes a point a little outside for one of the closest cell, and extrapolates.
    least = float(matrix.getValuesCSR()[2].min(initial=0.0))
    if target.mesh().comm.allreduce(least, op=min) < -_OUTSIDE:
        raise hierarchy.not_covered(source, target)
    return matrix


def _dimensions(V: WithGeometry) -> tuple[int, int]:
    return V.mesh().topological_dimension, V.mesh().geometric_dimension


def check_nested(coarse: WithGeometry, fine: WithGeometry) -> None:
    r"""Raise unless :math:`V_H \subset V_h`, that is :math:`M_H = P^T M_h P` for the consistent masses.

    Raises
    ------
    NestingError
        If the dimensions differ, the meshes cover different domains, or a coarse basis function is not a
        function of the fine space. On a curved surface none is: the facets of two levels are not in one plane.
    """
    dimensions = [V.mesh().topological_dimension for V in (coarse, fine)]
    if dimensions[0] != dimensions[1]:
        raise NestingError(
            f"The coarse mesh has dimension {dimensions[0]}, the fine one {dimensions[1]}. Give two levels of one "
            "hierarchy."
        )
    mass = _consistent_mass(coarse)
    defect = _consistent_mass(fine).ptap(interpolation_matrix(coarse, fine))
    defect.axpy(-1.0, mass)
    relative = defect.norm(PETSc.NormType.FROBENIUS) / mass.norm(PETSc.NormType.FROBENIUS)
    if not relative <= _ROUND_OFF:
        inside, outside = _dimensions(coarse)
        advice = (
            "They are meshes of a curved surface, whose levels never nest: between them use rediscretise, as carry "
            "does by default." if inside < outside else
            "Galerkin transfer needs levels that nest, coarse and fine in this order, such as those of a "
            "MeshHierarchy; between other meshes use rediscretise.")
        raise NestingError(
            f"The mesh with {coarse.dim()} nodes is not nested in the one with {fine.dim()}: the mass matrix changes "
            f"by {relative:.1e} when its functions are prolonged. {advice}"
        )


def check_levels(coarse: WithGeometry, fine: WithGeometry) -> None:
    """Raise unless the spaces are on a coarse and a fine level of a surface, or nest.

    Raises
    ------
    NestingError
        As :func:`check_nested` does.
    """
    levels = hierarchy.levels_of_a_surface(coarse, fine)
    if not levels or levels[0].mesh() is not coarse.mesh():
        check_nested(coarse, fine)


def _consistent_mass(V) -> PETSc.Mat:
    with stop_annotating():
        return assemble(TrialFunction(V) * TestFunction(V) * dx).petscmat.copy()


def _coordinate(V, axis: int) -> Function:
    """Return a nodal field, positive so that products with it keep their pattern: a coordinate and a shift."""
    mesh = V.mesh()
    with stop_annotating():
        X = Function(VectorFunctionSpace(mesh, V.ufl_element())).interpolate(SpatialCoordinate(mesh))
    values = X.dat.data_ro.reshape(-1, mesh.geometric_dimension)[:, axis]
    low = mesh.comm.allreduce(float(values.min(initial=np.inf)), op=min)
    high = mesh.comm.allreduce(float(values.max(initial=-np.inf)), op=max)
    out = Function(V)
    out.dat.data[:] = 1.0 + (values - low) / (high - low)
    return out


def _transposed(matrix: PETSc.Mat) -> PETSc.Mat:
    out = PETSc.Mat()
    matrix.transpose(out)
    return out
