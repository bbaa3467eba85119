r"""The quadratic regularisation of a training problem, R(u) = 1/2 <u, A u>, assembled once from its UFL forms."""

from __future__ import annotations

import numpy as np
from firedrake import Cofunction, Function

from ctrlnet.controls import ControlSpace
from ctrlnet.readout import Readout

__all__ = ["Regularisation"]


class Regularisation:
    r"""Penalties of :math:`(s, b, W, \beta)` with their derivatives.

    .. math::

        R = \frac{\alpha}{2}\int \sum_j \omega_j^2 |s_j|^2+|b|^2\,dt
        + \frac{\gamma}{2}\int \sum_j \omega_j^2 |\dot s_j|^2+|\dot b|^2\,dt
        + \frac{\rho}{2} \int |\nabla W|^2\,dx + \frac{\epsilon}{2} \Bigl(\int |W|^2\,dx + |\beta|^2\Bigr)

    Every component of a control has the same scalar matrix, so a penalty costs a few small products, while
    assembling its form would cost more than the propagation of a hundred images.

    Parameters
    ----------
    control_size, control_roughness, control_scales
        alpha, gamma and omega; see :meth:`ctrlnet.ControlSpace.regularisation`.
    weights_gradient, weights_size
        rho and epsilon; see :meth:`ctrlnet.Readout.regularisation`.
    """

    def __init__(
        self, controls: ControlSpace, readout: Readout, control_size: float, control_roughness: float, control_scales,
        weights_gradient: float, weights_size: float,
    ):
        self._controls, self._readout = controls, readout
        self.time_matrix = controls.regularisation_matrix(control_size, control_roughness)
        scales = np.ones(controls.operators) if control_scales is None else controls.checked_scales(control_scales)
        self.operator_weights = np.repeat(scales**2, controls.features**2)
        self.weights_matrix = readout.regularisation_matrix(weights_gradient, weights_size)
        self.ridge = float(weights_size)

    def controls(self, s: Function, b: Function) -> tuple[np.ndarray, np.ndarray]:
        """Return A u of the controls in time, as arrays of their degrees of freedom."""
        count = self.time_matrix.shape[0]
        return (
            self.time_matrix @ (s.dat.data_ro.reshape(count, -1) * self.operator_weights),
            self.time_matrix @ b.dat.data_ro.reshape(count, -1),
        )

    def controls_value(self, s: Function, b: Function) -> float:
        """Return R(s, b)."""
        return 0.5 * sum(float((u.dat.data_ro.reshape(a.shape) * a).sum())
                         for u, a in zip((s, b), self.controls(s, b), strict=True))

    def controls_derivative(self, s: Function, b: Function) -> tuple[Cofunction, Cofunction]:
        """Return R'(s, b) in S* x B*; of a direction, the Hessian's product with it."""
        out = self._controls.cofunctions()
        for total, values in zip(out, self.controls(s, b), strict=True):
            total.dat.data[:] = values.reshape(total.dat.data_ro.shape)
        return out

    def weights(self, W: np.ndarray) -> np.ndarray:
        """Return A W of the classifier, (features, K) on every rank."""
        return (self.weights_matrix @ W.reshape(self.weights_matrix.shape[0], -1)).reshape(W.shape)

    def weights_value(self, W: np.ndarray, beta: np.ndarray) -> float:
        """Return R(W, beta)."""
        return 0.5 * float((W * self.weights(W)).sum()) + 0.5 * self.ridge * float(beta @ beta)
