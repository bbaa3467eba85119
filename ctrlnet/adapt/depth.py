r"""The number of time steps from an estimate of the error they make.

With the scheme's order p, N steps have the error :math:`Y_N - Y = c N^{-p} + o(N^{-p})`, so that a run of M > N steps
measures it: :math:`Y_N - Y_M \approx (1 - (N/M)^p)(Y_N - Y)`.

Source: Hairer, Norsett and Wanner, "Solving ordinary differential equations I", 1993, section II.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ctrlnet.controls import Controls, ControlsLike, as_controls, divided
from ctrlnet.errors import PropagationError, finite
from ctrlnet.fields.inputs import NodalMap
from ctrlnet.fields.sample import Sample
from ctrlnet.network.network import Network
from ctrlnet.objective.nodal_inputs import nodal_map_for
from ctrlnet.objective.readout import Readout

__all__ = ["AdaptiveDepth", "DepthError", "DepthEstimate", "adapt_depth"]


@dataclass(frozen=True)
class DepthEstimate:
    """The estimated relative error of a number of steps; infinite where the propagation fails.

    ``order`` is the observed one, from half the steps to these; None where there are no two errors to compare.
    """

    steps: int
    error: float
    order: float | None = None


class DepthError(ValueError):
    """No number of steps within the limit has an error below the tolerance; ``estimates`` are those that were made."""

    def __init__(self, message: str, estimates: tuple[DepthEstimate, ...]):
        super().__init__(message)
        self.estimates = estimates


@dataclass(frozen=True)
class AdaptiveDepth:
    """The network with the chosen number of steps, its estimated relative error, and all estimates by steps."""

    network: Network
    error: float
    estimates: tuple[DepthEstimate, ...]


def adapt_depth(
    network: Network, sample: Sample, m: ControlsLike, tolerance: float, *,
    classifier: Readout | None = None, limit: int = 4096, projection: NodalMap | None = None,
) -> AdaptiveDepth:
    r"""Return the network with the fewest steps whose time discretisation error is below a tolerance.

    The steps are doubled, from one a control cell, until the difference of N and 2N steps is small enough; then the
    smallest number between N/2 and N is looked for. Numbers of steps are multiples of the control cells: a step does
    not cross a jump of piecewise constant controls, which would cost the scheme its order.

    Parameters
    ----------
    network
        Gives operators, dynamics and scheme; its own number of steps does not matter.
    sample
        Images that the error is measured over; some tens do. One final state of all of them is held.
    m
        Controls, with those of the classifier if there is one.
    tolerance
        Of :math:`|Y_N(T) - Y(T)| / |Y(T)|` in the lumped L2 norm over all features and images.
    classifier
        A readout: the error is that of its scores instead, in the Euclidean norm.
    limit
        The most steps that are run; the error of N steps takes 2N.
    projection
        Maps images to nodal values, as for :class:`~ctrlnet.SampleAverage`.

    Raises
    ------
    ValueError
        If the tolerance is not positive, or the limit leaves no room for two runs.
    DepthError
        If the limit is reached, with the estimates made: the error is still too large, or the propagation fails.
    """
    cells = network.control_space.cells
    if not (finite(tolerance) and tolerance > 0):
        raise ValueError(f"The tolerance must be positive and finite, received {tolerance!r}.")
    if limit < 2 * cells:
        raise ValueError(
            f"An error estimate takes runs of {cells} and {2 * cells} steps, one and two a control cell; received "
            f"limit={limit!r}. Allow at least {2 * cells} steps."
        )
    measured = _Final(network, sample, as_controls(m, network.control_set.names), classifier, projection)
    order = network.integrator.order
    estimates: dict[int, DepthEstimate] = {}
    steps, here, failure = cells, *measured.at(cells)
    while True:
        if 2 * steps > limit:
            found = tuple(estimates.values())
            why = (f"the propagation fails with {steps} steps ({failure})" if here is None
                   else f"the estimated error of {found[-1].steps} steps is {found[-1].error:.3g}")
            raise DepthError(
                f"No number of steps up to the limit of {limit} has a relative error below {tolerance:g}: {why}. Allow "
                "more steps (limit=), a larger tolerance, a scheme of higher order, or an implicit one where an "
                "explicit one is unstable.", found)
        there, failure = measured.at(2 * steps)
        error = measured.relative(here, there, 1 - 2.0**-order)
        before = estimates.get(steps // 2)
        known = before is not None and np.isfinite([before.error, error]).all() and before.error > 0 < error
        estimates[steps] = DepthEstimate(steps, error, float(np.log2(before.error / error)) if known else None)
        if error <= tolerance:
            break
        steps, here = 2 * steps, there
    # Fewer may do: the error is c N^-p.
    for fewer in range(max(cells, _predicted(error, tolerance, order, steps, cells)), steps, cells):
        if fewer in estimates:
            continue
        error = measured.relative(measured.at(fewer)[0], there, 1 - (fewer / (2 * steps)) ** order)
        estimates[fewer] = DepthEstimate(fewer, error)
        if error <= tolerance:
            steps = fewer
            break
    table = tuple(estimates[n] for n in sorted(estimates))
    return AdaptiveDepth(network.with_depth(steps=_steps(network, steps)), estimates[steps].error, table)


def _predicted(error: float, tolerance: float, order: int, steps: int, cells: int) -> int:
    """Return the multiple of the cells that the error of some steps says is just enough."""
    return cells * math.ceil(steps / cells * (error / tolerance) ** (1 / order) - 1e-9)


def _steps(network: Network, count: int) -> int | np.ndarray:
    """Return so many steps, as many in each control cell, as :meth:`ctrlnet.Network.with_depth` takes them."""
    space = network.control_space
    return count if isinstance(space.depth, int) else divided(space.times, count // space.cells)


class _Final:
    """What is compared: final states (this rank's nodes), or scores (the same on every rank)."""

    def __init__(
        self, network: Network, sample: Sample, m: Controls, classifier: Readout | None, projection: NodalMap | None
    ):
        self._network, self._controls, self._classifier = network, m, classifier
        self._weights = None if classifier is None else classifier.arrays(m)
        self._nodal = nodal_map_for(network, sample.inputs, projection).nodal(sample.inputs, 0, len(sample))

    def at(self, steps: int) -> tuple[np.ndarray | None, str]:
        """Return the values with a number of steps; or None, and why the propagation failed."""
        net = self._network.with_depth(steps=_steps(self._network, steps))
        layers = net.layers(self._controls)
        block = net.sweep.image_block
        trajectory = net.sweep.trajectory(net.steps, block, keep=False)
        parts = []
        try:
            for first in range(0, self._nodal.shape[2], block):
                nodal = self._nodal[:, :, first : first + block]
                net.opening.open(layers, nodal, trajectory.initial)
                with np.errstate(over="ignore", invalid="ignore"):
                    Y = net.sweep.forward(layers.in_time, net.step_sizes, trajectory)
                    parts.append(self._values(Y, nodal.shape[2]))
        except PropagationError as error:
            return None, str(error)
        values = np.concatenate(parts, axis=-1)
        if not net.comm.allreduce(bool(np.isfinite(values).all()), op=MPI.LAND):
            return None, "the state is not finite"
        return values, ""

    def _values(self, Y: np.ndarray, images: int) -> np.ndarray:
        if self._classifier is None:
            return np.array(Y[:, :, :images], dtype=float)
        W, beta = self._weights
        return W.T @ self._classifier.restrict(Y)[:, :images] + beta[:, None]

    def relative(self, here: np.ndarray | None, there: np.ndarray | None, share: float) -> float:
        """Return the relative error that a difference of two runs, a share of the error, stands for."""
        if here is None or there is None:
            return math.inf
        with np.errstate(over="ignore"):
            return self._norm(here - there) / (share * max(self._norm(there), np.finfo(float).tiny))

    def _norm(self, values: np.ndarray) -> float:
        if self._classifier is not None:
            return float(np.linalg.norm(values))
        mass = self._network.operators.mass[:, None, None]
        return math.sqrt(self._network.comm.allreduce(float((mass * values**2).sum())))
