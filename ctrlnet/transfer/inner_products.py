r"""Inner products of discrete operators on one space, in which a Galerkin product is projected.

Each one turns operators into columns of numbers whose Euclidean products, summed over ranks, are the inner products.
Rows (nodes I) are weighted by :math:`w_I M_I`, with M the lumped mass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from firedrake import Function, SpatialCoordinate, VectorFunctionSpace
from petsc4py import PETSc
from pyadjoint import stop_annotating

from ctrlnet.operators.halo import Halo
from ctrlnet.operators.intergrid import lumped_mass
from ctrlnet.operators.stencil_table import union_of_entries

__all__ = ["HilbertSchmidt", "Moments"]


@dataclass(frozen=True)
class HilbertSchmidt:
    r""":math:`\langle A, B\rangle = \sum_{IJ} w_I M_I A_{IJ} B_{IJ}/M_J`, the trace of :math:`A^*B` in lumped L2.

    All functions of the mesh count alike, the roughest ones too, on which derivatives are largest: where the
    operators do not span the Galerkin product, its projection does not converge under refinement.
    """

    def columns(self, matrices: Sequence[PETSc.Mat], weights: Function) -> np.ndarray:
        """Return one column an operator, shape (entries on this rank, operators)."""
        mass = lumped_mass(weights.function_space())
        with mass.dat.vec_ro as M, weights.dat.vec_ro as w:
            left, right = M.copy(), M.copy()
            left.pointwiseMult(left, w)
            left.sqrtabs()
            right.sqrtabs()
            right.reciprocal()
        scaled = [m.copy() for m in matrices]
        for matrix in scaled:
            matrix.diagonalScale(L=left, R=right)
        return union_of_entries(scaled)[2]


@dataclass(frozen=True)
class Moments:
    r"""The inner product of what operators do to smooth functions, by their moments at each node,

    .. math:: \langle A, B\rangle = \sum_I w_I M_I \sum_{\alpha_i \le p} m_\alpha(A)_I\, m_\alpha(B)_I,
        \qquad m_\alpha(A)_I = \sum_J A_{IJ} \frac{(x_J - x_I)^\alpha}{\alpha!\,\ell^{|\alpha|}}.

    The moments of a consistent operator are its coefficients in a Taylor expansion. No derivative has a moment
    of order 0, so the identity's coefficient, and with it what happens to constants, is exact.

    Parameters
    ----------
    degree
        p, the highest power of each coordinate; the highest order of the operators along an axis, or more.
    length
        The length scale, in the unit of the mesh. Default: the mean width of the coarse mesh, the root of volume
        over nodes.

    Raises
    ------
    ValueError
        If the degree is negative or the length not positive.
    """

    degree: int = 2
    length: float | None = None

    def __post_init__(self):
        if self.degree < 0 or (self.length is not None and not 0 < self.length < math.inf):
            raise ValueError(
                f"Moments need a degree of 0 or more and a positive length, received degree={self.degree!r}, "
                f"length={self.length!r}."
            )

    def columns(self, matrices: Sequence[PETSc.Mat], weights: Function) -> np.ndarray:
        """Return one column an operator, shape (nodes on this rank x moments, operators).

        Raises
        ------
        ValueError
            On a periodic mesh, where coordinates jump.
        """
        V = weights.function_space()
        mesh, dim = V.mesh(), V.mesh().geometric_dimension
        if mesh.coordinates.function_space().finat_element.is_dg():
            raise ValueError(
                f"The periodic mesh {mesh} has no distances between neighbours that its coordinates tell, which "
                "moments need. Take inner_product=HilbertSchmidt()."
            )
        rows, columns, entries, owned = union_of_entries(matrices)
        first, last = matrices[0].getOwnershipRange()
        outside = (columns < first) | (columns >= last)
        halo = Halo(mesh.comm, owned, np.unique(columns[outside]))
        places = np.zeros((owned + halo.ghosts, dim))
        with stop_annotating():
            X = Function(VectorFunctionSpace(mesh, V.ufl_element())).interpolate(SpatialCoordinate(mesh))
        places[:owned] = X.dat.data_ro.reshape(-1, dim)
        halo.update(places)
        local = np.where(outside, owned + np.searchsorted(np.unique(columns[outside]), columns), columns - first)
        mass = lumped_mass(V).dat.data_ro
        volume = mesh.comm.allreduce(float(mass.sum()))
        length = self.length or (volume / V.dim()) ** (1 / V.mesh().topological_dimension)
        offset = (places[local] - places[rows]) / length
        scale = np.sqrt(weights.dat.data_ro * mass)
        out = []
        for alpha in itertools.product(range(self.degree + 1), repeat=dim):
            monomial = np.prod(offset**alpha, axis=1) / math.prod(map(math.factorial, alpha))
            moment = np.zeros((owned, len(matrices)))
            np.add.at(moment, rows, monomial[:, None] * entries)
            out.append(scale[:, None] * moment)
        return np.concatenate(out)
