r"""The inner product of the controls, and coordinates that are orthonormal in it.

.. math::

    \langle s, s'\rangle = \int \sum_j \omega_j^2\,(s_j\cdot s_j' + \tau^2\,\dot s_j\cdot\dot s_j')\,dt,\qquad
    \langle W, W'\rangle = \int \rho\,\nabla W\cdot\nabla W' + \epsilon\,W W'\,dx,

b as s with weight 1, beta with the plain product. A gradient's norm, a trust region and a Krylov solve in these
coordinates do not depend on the number of control cells, layers or nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from firedrake import Cofunction

from ctrlnet.controls.control_set import ControlSet
from ctrlnet.controls.controls import Controls, ControlsLike

__all__ = ["Coordinates", "InnerProduct"]


@dataclass(frozen=True)
class InnerProduct:
    r"""The product :math:`\sum_c \omega_c^2\, u_c^T M v_c` of a control's degrees of freedom, c its components.

    Parameters
    ----------
    matrix
        M, (rows, rows), symmetric and positive definite.
    scales
        omega, (components,). Default: 1.
    """

    matrix: np.ndarray
    scales: np.ndarray | None = None


class Coordinates:
    r"""Controls as one array x on every rank, :math:`m = M^{-1/2} x` with M the metric's matrix.

    A Cofunction g, in the dual of a control's space, has the coordinates :math:`M^{-1/2} g`: the array's Euclidean
    product is the metric's, and its dual's. The symmetric root keeps a coordinate with its node, so that what a method
    does coordinate by coordinate depends on no numbering.

    :meth:`ctrlnet.TrainingProblem.coordinates` builds them from a problem's regularisation.

    Parameters
    ----------
    control_set
        The controls that x holds.
    metric
        The inner product of each; one that is not there has the plain product of its degrees of freedom.
    penalties
        The regularisation's matrix over each control's degrees of freedom, in the scales of the metric.

    Attributes
    ----------
    slices
        Where each control is in x.

    Raises
    ------
    ValueError
        If a metric's matrix is not positive definite.
    """

    def __init__(
        self, control_set: ControlSet, metric: Mapping[str, InnerProduct], penalties: Mapping[str, np.ndarray]
    ):
        self.control_set, self.names = control_set, control_set.names
        self._penalties = penalties
        chosen = {n: metric[n] for n in self.names if n in metric}
        self._scales = {n: product.scales for n, product in chosen.items()}
        # Controls in time share one matrix.
        matrices = {id(product.matrix): product.matrix for product in chosen.values()}
        roots = {key: _root(matrix) for key, matrix in matrices.items()}
        self._roots = {n: roots[id(product.matrix)] for n, product in chosen.items()}
        edges = np.cumsum([0, *(part.rows * part.components for part in control_set)])
        self.slices = {n: slice(a, b) for n, a, b in zip(self.names, edges, edges[1:], strict=False)}
        self.size = int(edges[-1])

    def _scaled(self, name: str, values: np.ndarray, inverse: bool) -> np.ndarray:
        """Return the root of the metric's matrix, or its inverse, times values (rows, ...)."""
        roots, scales = self._roots.get(name), self._scales.get(name)
        if scales is not None:
            scales = scales.reshape(-1, *[1] * (values.ndim - 2))
            values = values / scales if inverse else values * scales
        if roots is None:
            return values
        return (roots[inverse] @ values.reshape(values.shape[0], -1)).reshape(values.shape)

    def array(self, m: ControlsLike) -> np.ndarray:
        """Return the coordinates of controls."""
        return np.concatenate([
            self._scaled(n, values, False).ravel() for n, values in self.control_set.arrays(m).items()])

    def dual_array(self, derivatives: Sequence[Cofunction]) -> np.ndarray:
        """Return the coordinates of derivatives: of a functional's Riesz representative in the metric."""
        return np.concatenate([
            self.dual_values(n, values).ravel() for n, values in self.control_set.dual_arrays(derivatives).items()])

    def dual_values(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the coordinates of derivatives of one control, (rows, components [, columns])."""
        return self._scaled(name, values, True)

    def functions(self, x: np.ndarray) -> Controls:
        """Return the controls of coordinates."""
        return self.control_set.functions({
            part.name: self._scaled(part.name, x[self.slices[part.name]].reshape(part.rows, -1), True)
            for part in self.control_set})

    # The regularisation's Hessian in these coordinates, the natural preconditioner.

    def regularisation_solver(self, shift: float) -> Callable[[np.ndarray], np.ndarray]:
        r"""Return x -> :math:`(R'' + \mu I)^{-1} x` in these coordinates, with shift mu > 0."""
        if not shift > 0:
            raise ValueError(f"The shift of the preconditioner must be positive, received {shift!r}.")
        spectra = {name: scipy.linalg.eigh(self.regularisation_block(name)) for name in self.names}

        def solve(x: np.ndarray) -> np.ndarray:
            out = np.empty_like(x)
            for name, part in self.slices.items():
                values, vectors = spectra[name]
                rotated = vectors.T @ x[part].reshape(values.size, -1)
                out[part] = (vectors @ (rotated / (values + shift)[:, None])).ravel()
            return out

        return solve

    def regularisation_block(self, name: str) -> np.ndarray:
        """Return the regularisation's matrix over the rows of a control, whitened."""
        A, roots = self._penalties[name], self._roots.get(name)
        return A if roots is None else roots[1] @ A @ roots[1]


def _root(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetric root of a positive definite matrix and its inverse."""
    values, vectors = scipy.linalg.eigh(matrix)
    if not values[0] > 0:
        raise ValueError(f"The metric's matrix must be positive definite; its least eigenvalue is {values[0]:.2e}.")
    root = np.sqrt(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
