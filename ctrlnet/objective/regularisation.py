r"""The quadratic regularisation of a training problem, R(m) = 1/2 <m, A m>, assembled once from its UFL forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from ctrlnet.controls import Controls, ControlsLike, InnerProduct
from ctrlnet.errors import EvaluationError, finite
from ctrlnet.network.network import Network
from ctrlnet.objective.average import FeatureReadout
from ctrlnet.objective.point import Point

__all__ = ["Penalty", "Regularisation", "RegularisedReadout"]


class RegularisedReadout(FeatureReadout, Protocol):
    """A readout with a classifier to be trained: a regularisation of it, and Functions for it."""

    def zero(self) -> Controls:
        """Return the classifier (W, beta) that is zero."""

    def point(self, m: ControlsLike) -> Point:
        """Return all controls, those of the network and the classifier, as arrays of their own."""

    def classifier(self, W: np.ndarray, beta: np.ndarray) -> Controls:
        """Return the classifier of arrays W (features, K) and beta (K,)."""

    def arrays(self, m: ControlsLike) -> tuple[np.ndarray, np.ndarray]:
        """Return a classifier as W (features, K) and beta (K,), on every rank."""

    def regularisation_matrix(self, gradient: float = 0.0, size: float = 0.0) -> sp.csc_matrix:
        """Return the matrix of W's regularisation over its rows, the same on every rank."""

    def prolong(self, m: ControlsLike, target: Any) -> Controls:
        """Return the classifier for the readout of another mesh."""


@dataclass(frozen=True)
class Penalty:
    r"""Of one control: :math:`\frac12 \sum_c \omega_c^2\, u_c^T A u_c` over its components c.

    Parameters
    ----------
    matrix
        A, (rows, rows), symmetric.
    scales
        omega, (components,). Default: 1.
    """

    matrix: np.ndarray | sp.csc_matrix
    scales: np.ndarray | None = None

    @property
    def dense(self) -> np.ndarray:
        return self.matrix if isinstance(self.matrix, np.ndarray) else self.matrix.toarray()

    def product(self, values: np.ndarray) -> np.ndarray:
        """Return A u for degrees of freedom u (rows, components)."""
        return self.matrix @ (values if self.scales is None else values * self.scales**2)


class Regularisation:
    r"""Penalties of all controls with their derivatives.

    .. math::

        R = \frac{\alpha}{2}\int \sum_j \omega_j^2 |s_j|^2+|b|^2\,dt
        + \frac{\gamma}{2}\int \sum_j \omega_j^2 |\dot s_j|^2+|\dot b|^2\,dt
        + \frac{\rho}{2} \int |\nabla W|^2\,dx + \frac{\epsilon}{2} \Bigl(\int |W|^2\,dx + |\beta|^2\Bigr)
        + \frac{\kappa}{2} |O|^2,

    learned parameters as b, O a learned opening. Every component of a control has the same scalar matrix, so a
    penalty costs a few small products, while assembling its form would cost more than the propagation of a hundred
    images.

    Parameters
    ----------
    network, readout
        Of the controls.
    control_size, control_roughness, control_scales
        alpha, gamma and omega; see :meth:`ctrlnet.ControlSpace.regularisation`.
    weights_gradient, weights_size
        rho and epsilon; see :meth:`ctrlnet.Readout.regularisation`.
    opening_size
        kappa, not negative.

    Attributes
    ----------
    penalties : dict
        The :class:`Penalty` of each control, by name.
    operator_scales
        omega of each component of s, (J * C * C,).
    weights_matrix
        :math:`\rho K + \epsilon M_L` of W, sparse, (nodes, nodes).
    ridge
        epsilon.
    settings : dict
        The weights, by the names of a :class:`~ctrlnet.TrainingProblem`'s arguments.
    """

    def __init__(
        self, network: Network, readout: RegularisedReadout, control_size: float, control_roughness: float,
        control_scales: Sequence[float] | None, weights_gradient: float, weights_size: float,
        opening_size: float = 0.0,
    ):
        if not (finite(opening_size) and opening_size >= 0):
            raise ValueError(f"opening_size must not be negative, and finite; received {opening_size!r}.")
        self.settings: dict[str, Any] = {
            "control_size": control_size, "control_roughness": control_roughness, "control_scales": control_scales,
            "weights_gradient": weights_gradient, "weights_size": weights_size, "opening_size": opening_size}
        self._control_space = control_space = network.control_space
        self._in_time = control_space.control_set.names
        scales = (np.ones(control_space.operators) if control_scales is None
                  else control_space.checked_scales(control_scales))
        self.operator_scales = np.repeat(scales, control_space.features**2)
        self.weights_matrix = readout.regularisation_matrix(weights_gradient, weights_size)
        self.ridge = float(weights_size)
        in_time = Penalty(control_space.regularisation_matrix(control_size, control_roughness))
        opening = Penalty(np.array([[float(opening_size)]]))
        self.penalties = dict.fromkeys(self._in_time, in_time) | dict.fromkeys(
            network.opening.control_set.names, opening) | {
            "s": Penalty(in_time.matrix, self.operator_scales), "W": Penalty(self.weights_matrix),
            "beta": Penalty(np.array([[self.ridge]]))}

    def products(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return A m, which is R'(m), by name, (rows, components) as the degrees of freedom given; of some or all."""
        return {name: self.penalties[name].product(values) for name, values in arrays.items()}

    def value(self, arrays: Mapping[str, np.ndarray]) -> float:
        """Return R of degrees of freedom by name, of all controls or of some of them.

        Raises
        ------
        EvaluationError
            If it is not finite.
        """
        parts = {n: 0.5 * float((arrays[n] * Am).sum()) for n, Am in self.products(arrays).items()}
        in_time = sum(part for n, part in parts.items() if n in self._in_time)
        total = in_time + sum(part for n, part in parts.items() if n not in self._in_time)
        if not np.isfinite(total):
            too_large = ", ".join(n for n, part in parts.items() if not np.isfinite(part))
            raise EvaluationError(
                f"The regularisation of {too_large} is not finite: the controls are not, or their squares are larger "
                "than floating point numbers go. Take smaller ones.")
        return total

    def metric(
        self, names: Sequence[str], time_scale: float = 0.0, weights_matrix: np.ndarray | None = None
    ) -> dict[str, InnerProduct]:
        r"""Return the inner products of controls: L2 in time, with this regularisation's scales, and its matrix for W.

        Parameters
        ----------
        names
            The controls that are asked for.
        time_scale
            :math:`\tau` of the product in time; 0 for L2.
        weights_matrix
            Matrix of the product of W over the readout's nodes (symmetric, positive definite, dense). Default: that of
            its regularisation.
        """
        out: dict[str, InnerProduct] = {}
        if set(names) & set(self._in_time):
            in_time = self._control_space.regularisation_matrix(1.0, time_scale**2)
            out = dict.fromkeys(self._in_time, InnerProduct(in_time))
            out["s"] = InnerProduct(in_time, self.operator_scales)
        if "W" in names:
            out["W"] = InnerProduct(self.weights_matrix.toarray() if weights_matrix is None else weights_matrix)
        return {name: product for name, product in out.items() if name in names}

    def matrices(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the dense matrix A of each control named."""
        return {name: self.penalties[name].dense for name in names}
