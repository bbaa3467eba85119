r"""The inner product of the controls, and coordinates that are orthonormal in it.

.. math::

    \langle s, s'\rangle = \int \sum_j \omega_j^2\,(s_j\cdot s_j' + \tau^2\,\dot s_j\cdot\dot s_j')\,dt,\qquad
    \langle W, W'\rangle = \int \rho\,\nabla W\cdot\nabla W' + \epsilon\,W W'\,dx,

b as s with weight 1, beta with the plain product. A gradient's norm, a trust region and a Krylov solve in these
coordinates do not depend on the number of control cells, layers or nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from firedrake import Cofunction, Function

__all__ = ["Coordinates", "NAMES"]

NAMES = ("s", "b", "W", "beta")


class Coordinates:
    r"""Controls as one array x on every rank, :math:`m = M^{-1/2} x` with M the metric's matrix.

    A Cofunction g, in the dual of a control's space, has the coordinates :math:`M^{-1/2} g`: the array's Euclidean
    product is the metric's, and its dual's. The symmetric root keeps a coordinate with its node, so that what a method
    does coordinate by coordinate depends on no numbering.

    Parameters
    ----------
    problem
        A :class:`~ctrlnet.TrainingProblem`: the controls' spaces, their regularisation and its operator weights.
    names
        The controls that x holds, in the order of ``("s", "b", "W", "beta")``.
    time_scale
        tau of the inner product in time; 0 for L2.
    weights_matrix
        Matrix of the inner product of W over the readout's nodes (symmetric, positive definite, dense).
        Default: that of its regularisation.
    euclidean
        Leave the metric out: x are the degrees of freedom themselves.
    """

    def __init__(self, problem, names: Sequence[str] = NAMES, time_scale: float = 0.0, weights_matrix=None,
                 euclidean: bool = False):
        unknown = [n for n in names if n not in NAMES]
        if unknown or not names:
            raise ValueError(f"Controls are named {', '.join(NAMES)}; received {list(names)!r}.")
        self.problem = problem
        self.names = tuple(n for n in NAMES if n in names)
        controls, readout = problem.network.controls, problem.readout
        time = None if euclidean else _root(controls.regularisation_matrix(1.0, time_scale**2))
        self._roots = {"s": time, "b": time}
        self._weights = {} if euclidean else {"s": np.sqrt(problem.regularisation.operator_weights)}
        if "W" in self.names and not euclidean:
            matrix = problem.regularisation.weights_matrix.toarray() if weights_matrix is None else weights_matrix
            self._roots["W"] = _root(matrix)
        self._counts = {"s": problem.regularisation.time_matrix.shape[0], "W": readout.space.dim(), "beta": 1}
        self._counts["b"] = self._counts["s"]
        spaces = {"s": controls.s_space, "b": controls.b_space, "W": readout.weights_space, "beta": readout.bias_space}
        self._spaces = {n: spaces[n] for n in self.names}
        sizes = {"W": readout.features * readout.classes} | {
            n: self._spaces[n].dim() for n in self.names if n != "W"}
        edges = np.cumsum([0, *(sizes[n] for n in self.names)])
        self.slices = {n: slice(a, b) for n, a, b in zip(self.names, edges, edges[1:], strict=False)}
        self.size = int(edges[-1])

    def _values(self, name: str, function: Function | Cofunction) -> np.ndarray:
        if name == "W":
            readout = self.problem.readout
            return readout.weights_array(function).reshape(readout.space.dim(), -1)
        return function.dat.data_ro.reshape(self._counts[name], -1)

    def _scaled(self, name: str, values: np.ndarray, inverse: bool) -> np.ndarray:
        """Return the root of the metric's matrix, or its inverse, times values (degrees of freedom, ...)."""
        roots, weights = self._roots.get(name), self._weights.get(name, 1.0)
        if np.ndim(weights):
            weights = weights.reshape(-1, *[1] * (values.ndim - 2))
        values = values / weights if inverse else values * weights
        if roots is None:
            return values
        return (roots[inverse] @ values.reshape(values.shape[0], -1)).reshape(values.shape)

    def array(self, functions: Sequence[Function]) -> np.ndarray:
        """Return the coordinates of controls."""
        return np.concatenate([
            self._scaled(n, self._values(n, f), False).ravel() for n, f in zip(self.names, functions, strict=True)])

    def dual_array(self, cofunctions: Sequence[Cofunction]) -> np.ndarray:
        """Return the coordinates of derivatives: of a functional's Riesz representative in the metric."""
        return np.concatenate([
            self.dual_values(n, self._values(n, f)).ravel() for n, f in zip(self.names, cofunctions, strict=True)])

    def dual_values(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the coordinates of derivatives of one control, (degrees of freedom, components [, columns])."""
        return self._scaled(name, values, True)

    def functions(self, x: np.ndarray) -> list[Function]:
        """Return the controls of coordinates."""
        out = []
        for name in self.names:
            values = self._scaled(name, x[self.slices[name]].reshape(self._counts[name], -1), True)
            out.append(Function(self._spaces[name], name=name))
            if name == "W":
                self.problem.readout.set_weights(out[-1], values)
            else:
                out[-1].dat.data[:] = values.reshape(out[-1].dat.data_ro.shape)
        return out

    # The regularisation's Hessian in these coordinates, the natural preconditioner.

    def regularisation_solver(self, shift: float):
        r"""Return x -> :math:`(R'' + \mu I)^{-1} x` in these coordinates, with shift mu > 0."""
        if not shift > 0:
            raise ValueError(f"The shift of the preconditioner must be positive, received {shift!r}.")
        blocks = {name: self.regularisation_block(name) for name in self.names}
        spectra = {n: None if A is None else scipy.linalg.eigh(A) for n, A in blocks.items()}

        def solve(x: np.ndarray) -> np.ndarray:
            out = np.empty_like(x)
            for name, part in self.slices.items():
                if spectra[name] is None:
                    out[part] = x[part] / (self.problem.regularisation.ridge + shift)
                    continue
                values, vectors = spectra[name]
                rotated = vectors.T @ x[part].reshape(self._counts[name], -1)
                out[part] = (vectors @ (rotated / (values + shift)[:, None])).ravel()
            return out

        return solve

    def regularisation_block(self, name: str) -> np.ndarray | None:
        """Return the regularisation's matrix over a control's degrees of freedom, whitened; None for beta."""
        if name == "beta":
            return None
        regularisation = self.problem.regularisation
        A = regularisation.weights_matrix.toarray() if name == "W" else regularisation.time_matrix
        roots = self._roots.get(name)
        return A if roots is None else roots[1] @ A @ roots[1]


def _root(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetric root of a positive definite matrix and its inverse."""
    values, vectors = scipy.linalg.eigh(matrix)
    if not values[0] > 0:
        raise ValueError(f"The metric's matrix must be positive definite; its least eigenvalue is {values[0]:.2e}.")
    root = np.sqrt(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
