r"""Galerkin transfer of stencils on uniform meshes: an exact linear map, in any dimension.

With K a stencil of three points per axis, r and p the weights of restriction and prolongation along an axis,
the stencil of :math:`K_H = R K_h P` on the mesh of twice the width is again of three points,

.. math:: (K_H)_J = \sum_{i + k - 2J = l} r_i\, K_k\, p_l ,

and in several dimensions the map is the tensor product of the map of one axis. The feature mixing and the time
are carried along.

Source: E. Haber, L. Ruthotto, "Convolution Neural Nets meet PDE's", SIAM CS&E 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from ctrlnet.operators.intergrid import Prolongation, Restriction, checked_pair
from ctrlnet.operators.stencils import names, stencil_basis, to_coefficients, to_stencil
from ctrlnet.transfer.coefficient_map import CoefficientMap, TransferResidual

__all__ = ["galerkin_stencil_map", "galerkin_stencils", "prolong_stencils"]


def axis_map(restriction: Restriction, prolongation: Prolongation) -> np.ndarray:
    """Return the 3 x 3 matrix of the map of stencils along one axis, fine offset -> coarse offset.

    Raises
    ------
    ValueError
        If the coarse stencil would have more than three points.
    """
    r, p = restriction.weights, prolongation.weights
    out = np.zeros((3, 3))
    for i, r_i in r.items():
        for k in (-1, 0, 1):
            for offset, p_l in p.items():
                J, odd = divmod(i + k - offset, 2)
                if odd or r_i * p_l == 0.0:
                    continue
                if abs(J) > 1:
                    raise ValueError(
                        f"A restriction with the weights {dict(r)} and a prolongation with {dict(p)} make stencils "
                        "of more than three points. Take ones that reach at most one fine node to either side."
                    )
                out[J + 1, k + 1] += r_i * p_l
    return out


def galerkin_stencils(
    stencil: np.ndarray, dim: int, restriction: Restriction | None = None, prolongation: Prolongation | None = None
) -> np.ndarray:
    """Return the stencils of R K_h P on the mesh of twice the width.

    Parameters
    ----------
    stencil
        (3,) * dim + (...), as :mod:`ctrlnet.operators.stencils` indexes them; trailing axes (features,
        layers) are carried along.
    dim
        1, 2 or 3.
    restriction, prolongation
        Default: :class:`~ctrlnet.transfer.FullWeighting` and :class:`~ctrlnet.transfer.Linear`.

    Returns
    -------
    numpy.ndarray
        The same shape.

    Raises
    ------
    ValueError
        If the shape does not begin with (3,) * dim.
    """
    return galerkin_stencil_map((1.0,) * dim, restriction, prolongation)._on_stencils(stencil)


def prolong_stencils(
    stencil: np.ndarray, dim: int, restriction: Restriction | None = None, prolongation: Prolongation | None = None
) -> np.ndarray:
    """Return the fine stencils of three points per axis whose Galerkin product is given: coarse to fine.

    Parameters as in :func:`galerkin_stencils`.

    Raises
    ------
    SingularTransferError
        If the coarse stencil does not determine a fine one.
    """
    return galerkin_stencil_map((1.0,) * dim, restriction, prolongation).inverse()._on_stencils(stencil)


class StencilMap(CoefficientMap):
    """A map of coefficients that knows the spacings on either side."""

    h_from: tuple[float, ...]
    h_to: tuple[float, ...]

    def __init__(self, h_from: Sequence[float], h_to: Sequence[float], matrix: np.ndarray):
        dim = len(h_from)
        basis = stencil_basis(h_to).reshape(3**dim, -1)
        exact = TransferResidual(matrix.T @ basis @ basis.T @ matrix, np.zeros((3**dim,) * 2))
        norms = [np.sqrt((stencil_basis(h).reshape(3**dim, -1) ** 2).sum(axis=1)) for h in (h_from, h_to)]
        super().__init__(matrix, names(dim), names(dim), exact, exact, *norms)
        object.__setattr__(self, "h_from", tuple(h_from))
        object.__setattr__(self, "h_to", tuple(h_to))

    def inverse(self) -> StencilMap:
        return StencilMap(self.h_to, self.h_from, super().inverse().matrix)

    def _on_stencils(self, stencil: np.ndarray) -> np.ndarray:
        return to_stencil(self.coefficients(to_coefficients(stencil, self.h_from)), self.h_to)


def galerkin_stencil_map(
    h: Sequence[float], restriction: Restriction | None = None, prolongation: Prolongation | None = None
) -> StencilMap:
    r"""Return the exact map of the coefficients of the full stencil basis from spacing h to 2h.

    It serves :func:`ctrlnet.stencil_operators` on uniform meshes of intervals, quadrilaterals and hexahedra, without
    assembling anything; its residual is zero. :meth:`~CoefficientMap.inverse` is the way from coarse to fine.

    Parameters
    ----------
    h
        The fine spacing along each axis.
    restriction, prolongation
        Default: :class:`~ctrlnet.transfer.FullWeighting` and :class:`~ctrlnet.transfer.Linear`.

    Raises
    ------
    ValueError
        If ``h`` is no spacing, the restriction or the prolongation is of another kind, or the coarse stencil would
        have more than three points.
    """
    one = axis_map(*checked_pair(restriction, prolongation))
    fine = stencil_basis(h)
    dim = fine.ndim - 1
    tensor = reduce(np.kron, [one] * dim)
    coarse = (tensor @ fine.reshape(3**dim, -1).T).reshape((3,) * dim + (3**dim,))
    H = tuple(2.0 * step for step in h)
    return StencilMap(tuple(float(step) for step in h), H, to_coefficients(coarse, H))
