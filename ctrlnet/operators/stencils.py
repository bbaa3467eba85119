r"""Stencils of three points per axis and coefficients of differential operators: one change of basis.

On a uniform mesh of spacing h the three stencils

.. math::
    1 \to [0, 1, 0], \qquad d \to \frac{1}{2h} [-1, 0, 1], \qquad d^2 \to \frac{1}{h^2} [1, -2, 1]

span all stencils of three points, and their tensor products over the axes span all 3x3 and 3x3x3 ones, so
a convolution kernel and its coefficients :math:`s_j` in :math:`\sum_j s_j D_j` are two names of one thing.
The coefficients are those of a differential operator and stay when the spacing changes.

*Order of the operators.* A member is a multi-index :math:`(k_0, ..., k_{dim-1})` over the axes x, y, z with
:math:`k` = 0, 1, 2 for identity, first and second derivative, flattened in C order: the last axis is
fastest. In 2D: 1, dy, dyy, dx, dx dy, dx dyy, dxx, dxx dy, dxx dyy.

*Indexing of a stencil.* ``stencil[i, j, k]`` multiplies the neighbour at the offset (i-1, j-1, k-1) along
(x, y, z): :math:`(Ky)_p = \sum_o \text{stencil}[o+1]\, y_{p+o}`, a correlation, as convolutional networks
compute it. The mathematical convolution has the stencil reversed along every axis.

*Images.* Axis y points up, the rows of a picture run down, its columns along x. The 3x3 kernel that is
correlated with picture[row, column] is therefore ``numpy.flip(stencil.swapaxes(0, 1), axis=0)``, and the
stencil of a kernel is ``numpy.flip(kernel, axis=0).swapaxes(0, 1)``.

*Source.* E. Haber, L. Ruthotto, "Convolution Neural Nets meet PDE's", SIAM CS&E 2017. Its example of
rediscretisation does not follow from its formula: it gives [-1, -2, 1] at h = 1 the operator
-2 + 2 d/dx - 0.5 d2/dx2 and the stencil [-1, 1, -0.25] at h = 2. By the formula that stencil is -2 + 2 d/dx,
:math:`s = (-2, 2, 0)`, and becomes [-0.5, -2, 0.5] at h = 2. This module follows the formula.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

__all__ = ["names", "rescale", "stencil_basis", "to_coefficients", "to_stencil"]

_AXES = "xyz"


def names(dim: int) -> tuple[str, ...]:
    """Return the names of the 3**dim operators in their order, e.g. ``('1', 'dx', 'dxx')``.

    Raises
    ------
    ValueError
        If ``dim`` is not 1, 2 or 3.
    """
    if dim not in (1, 2, 3):
        raise ValueError(f"No stencils in this dimension: received dim = {dim!r}. Choose 1, 2 or 3.")
    members = itertools.product(range(3), repeat=dim)
    return tuple(
        " ".join("d" + axis * order for axis, order in zip(_AXES, member, strict=False) if order) or "1"
        for member in members
    )


def stencil_basis(h: Sequence[float]) -> np.ndarray:
    """Return the stencils of all operators.

    Parameters
    ----------
    h
        The spacing along each axis, in the unit of length of the mesh; its length is the dimension.

    Returns
    -------
    numpy.ndarray
        Shape (3**dim, 3, ..., 3): operator, then the offset along each axis.

    Raises
    ------
    ValueError
        If ``h`` is not one to three positive finite numbers.
    """
    spacings = _spacings(h)
    return to_stencil(np.eye(3 ** len(spacings)), spacings).transpose(len(spacings), *range(len(spacings)))


def to_stencil(coefficients: np.ndarray, h: Sequence[float]) -> np.ndarray:
    r"""Return the stencil :math:`\sum_j s_j D_j` of coefficients s.

    Parameters
    ----------
    coefficients
        Shape (3**dim, ...); trailing axes (features, layers) are carried along.
    h
        The spacing along each axis.

    Returns
    -------
    numpy.ndarray
        Shape (3,)*dim + (...).

    Raises
    ------
    ValueError
        If ``h`` is no spacing or the first axis of ``coefficients`` is not 3**dim long.
    """
    spacings = _spacings(h)
    dim = len(spacings)
    coefficients = np.asarray(coefficients, dtype=float)
    if coefficients.ndim < 1 or coefficients.shape[0] != 3**dim:
        raise ValueError(
            f"Coefficients do not fit {dim} spacings: received the shape {coefficients.shape}. Put the "
            f"{3**dim} operators of names({dim}) on the first axis, or give another number of spacings."
        )
    return _along_axes(
        coefficients.reshape((3,) * dim + coefficients.shape[1:]), [_basis_1d(step) for step in spacings]
    )


def to_coefficients(stencil: np.ndarray, h: Sequence[float]) -> np.ndarray:
    r"""Return the coefficients of a stencil, the inverse of :func:`to_stencil`.

    Along one axis, for the stencil [a, b, c]: s = (a + b + c, h (c - a), h^2 (a + c) / 2).

    Parameters
    ----------
    stencil
        Shape (3,)*dim + (...); trailing axes are carried along.
    h
        The spacing along each axis.

    Returns
    -------
    numpy.ndarray
        Shape (3**dim, ...).

    Raises
    ------
    ValueError
        If ``h`` is no spacing or the first axes of ``stencil`` are not (3,)*dim.
    """
    spacings = _spacings(h)
    dim = len(spacings)
    stencil = np.asarray(stencil, dtype=float)
    if stencil.shape[:dim] != (3,) * dim:
        raise ValueError(
            f"A stencil does not fit {dim} spacings: received the shape {stencil.shape}. Its first {dim} "
            "axes are the offsets -1, 0, +1 and are 3 long; give that, or another number of spacings."
        )
    inverses = [np.array([[1, 1, 1], [-step, 0, step], [step**2 / 2, 0, step**2 / 2]]) for step in spacings]
    return _along_axes(stencil, inverses).reshape((3**dim, *stencil.shape[dim:]))


def rescale(stencil: np.ndarray, h_from: Sequence[float], h_to: Sequence[float]) -> np.ndarray:
    """Return the stencil of the same differential operator at another spacing (rediscretisation).

    Parameters
    ----------
    stencil
        Shape (3,)*dim + (...), at spacing ``h_from``.
    h_from, h_to
        The spacings along each axis, of equal length.

    Returns
    -------
    numpy.ndarray
        The same shape, at spacing ``h_to``.

    Raises
    ------
    ValueError
        If the spacings differ in length or as in :func:`to_coefficients`.
    """
    if len(_spacings(h_from)) != len(_spacings(h_to)):
        raise ValueError(
            f"Spacings of different dimension: received h_from = {h_from!r} and h_to = {h_to!r}. "
            "Give one spacing per axis in both."
        )
    return to_stencil(to_coefficients(stencil, h_from), h_to)


def _basis_1d(h: float) -> np.ndarray:
    """Return the columns identity, d, d2 of one axis: offset x operator."""
    return np.array([[0, -1 / (2 * h), 1 / h**2], [1, 0, -2 / h**2], [0, 1 / (2 * h), 1 / h**2]])


def _along_axes(array: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one 3x3 matrix along each of the first axes."""
    for axis, matrix in enumerate(matrices):
        array = np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(array)


def _spacings(h: Sequence[float]) -> tuple[float, ...]:
    try:
        spacings = tuple(float(step) for step in h)
    except TypeError:
        spacings = ()
    if not 1 <= len(spacings) <= 3 or not all(np.isfinite(step) and step > 0 for step in spacings):
        raise ValueError(
            f"No spacing of a uniform mesh: received h = {h!r}. Give a tuple of one to three positive finite "
            "numbers, one per axis, e.g. (1.0, 1.0)."
        )
    return spacings
