r"""Whether explicit steps are short enough for a mesh.

Let :math:`\Phi_h` be one step, linearised at the state zero, and v the perturbation that it enlarges most, found by
power iteration with :math:`D\Phi_h^*\,D\Phi_h`. The equation itself lets v grow at the rate
:math:`r = \lim_{\epsilon\to 0} \log\|D\Phi_\epsilon v\| / \epsilon`. A step with

.. math:: \|D\Phi_h v\| > 2 \max(1, e^{hr})

enlarges what the equation does not: :math:`h\lambda` lies outside of the scheme's region of stability for a mode that
the mesh resolves. What grows because the controls want it so, as by diffusion backwards in time, passes.

Source: Hairer and Wanner, "Solving ordinary differential equations II", 1996, section IV.2.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import numpy as np
from firedrake import Function, SpatialCoordinate, VectorFunctionSpace
from pyadjoint import stop_annotating

from ctrlnet.controls import ControlsLike
from ctrlnet.errors import PropagationError
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.network.network import Network

__all__ = ["StabilityWarning", "look_once_at_steps", "warn_of_long_steps", "with_stable_steps"]

_ITERATIONS = 6
_FACTOR = 2.0
_SHORT = 1e-3  # change of a mode in so short a step that it shows its rate
_MOST_HALVINGS = 16
_LOOKED_AT: WeakSet[Network] = WeakSet()
_WARNED: WeakSet[Network] = WeakSet()  # once is enough


class StabilityWarning(UserWarning):
    """Explicit steps are too long for the mesh and the controls; what they return is noise, though it may be finite."""


def warn_of_long_steps(network: Network, m: ControlsLike) -> None:
    """Warn, once for a network, if a step enlarges what the equation does not; say how many would do. Collective.

    Schemes of implicit stages have no bound and are not looked at, nor are forms that a user wrote. A look costs 8
    tangent and 6 adjoint sweeps of one block of images through the layers that have controls of their own.

    Parameters
    ----------
    network, m
        The discrete map and its controls; those in time are taken.
    """
    if not _looked_at(network) or network in _WARNED:
        return
    _LOOKED_AT.add(network)
    sizes = network.step_sizes
    with stop_annotating():
        steps, numbers, _ = _steps(network, m)
        excess = [step.excess(sizes[k]) for step, k in zip(steps, numbers, strict=True)]
        worst = int(np.argmax(excess))
        if not excess[worst] > _FACTOR:  # nor if it is no number: then the propagation itself is an error
            return
        h = sizes[numbers[worst]]
        halvings = 1 + steps[worst].halvings(h / 2, _MOST_HALVINGS - 1)
        equal = isinstance(network.depth, int)
        enough = (f"steps={network.steps * 2**halvings}" if equal else f"steps=network.divided({2**halvings})") + (
            "" if halvings < _MOST_HALVINGS else " or more")
    _WARNED.add(network)
    if network.comm.rank == 0:
        warnings.warn(
            f"Steps of {h:.3g} are too long for this mesh of {network.space.dim()} nodes: layer {numbers[worst]} "
            f"enlarges a perturbation {excess[worst]:.1e} times that the equation does not. Take "
            f"network.with_depth({enough}), or a scheme without a bound: BackwardEuler(), "
            "ImplicitMidpoint(), or IMEX() where it is diffusion that is stiff.", StabilityWarning, stacklevel=3)


def with_stable_steps(network: Network, m: ControlsLike) -> Network:
    """Return the network with those of its steps halved, once or more often, that are too long; itself if none is.

    As :func:`warn_of_long_steps` finds them; what it does not look at stays as it is. Collective.

    Raises
    ------
    PropagationError
        If a step would have to be halved more than 16 times.
    """
    times, sizes = network.times, network.step_sizes
    if not _looked_at(network):
        return network
    with stop_annotating():
        steps, numbers, same_as = _steps(network, m)
        halvings = np.array([step.halvings(sizes[k], _MOST_HALVINGS + 1)
                             for step, k in zip(steps, numbers, strict=True)])[same_as]
    if halvings.max() > _MOST_HALVINGS:
        raise PropagationError(
            f"No step of {sizes[int(np.argmax(halvings))] / 2**_MOST_HALVINGS:.1e} or more is stable on this mesh of "
            f"{network.space.dim()} nodes. Take a scheme without a bound, or regularise the controls more.")
    parts = [np.linspace(a, b, 2**n, endpoint=False) for a, b, n in zip(times, times[1:], halvings, strict=False)]
    stable = network.with_depth(steps=np.append(np.concatenate(parts), times[-1])) if halvings.any() else network
    _LOOKED_AT.add(stable)
    return stable


def _looked_at(network: Network) -> bool:
    return network.dynamics.formula is not None and network.integrator.explicit


def _steps(network: Network, m: ControlsLike) -> tuple[list[_Step], np.ndarray, np.ndarray]:
    """Return the steps that differ, their numbers, and for every step which of them it is like."""
    layers, rough, stages = network.in_time(m), _rough(network), len(network.integrator.nodes)
    rows = [values.reshape(network.steps, -1) for values in layers.arrays]
    table = np.hstack([network.step_sizes[:, None], *rows])  # several steps in a cell of time may have the same
    _, first, same_as = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = first[order]
    steps = [_Step(network, layers.at_step(k, stages), rough) for k in numbers]
    return steps, numbers, np.argsort(order)[same_as.ravel()]


def look_once_at_steps(network: Network, m: ControlsLike) -> None:
    """Do :func:`warn_of_long_steps` for a network that nobody has looked at, where calls come for every iterate."""
    if network not in _LOOKED_AT:
        warn_of_long_steps(network, m)


class _Step:
    """One step from the state zero with the controls of a layer, and a rough field to begin with."""

    def __init__(self, network: Network, controls: LayerControls, rough: np.ndarray):
        self._network, self._controls, self._rough = network, controls, rough

    def excess(self, h: float) -> float:
        """Return how much more a step enlarges the perturbation that it enlarges most than the equation does."""
        v, at = self._rough, self._propagated(h)
        for _ in range(_ITERATIONS):
            following = self._transposed(h, at, self._applied(h, at, v))
            size = self._norm(following)
            if not 0 < size < np.inf:
                break
            v = following / size
        growth = self._norm(self._applied(h, at, v)) / self._norm(v)
        short = _SHORT / max(1.0, growth)
        rate = np.log(self._norm(self._applied(short * h, self._propagated(short * h), v)) / self._norm(v)) / short
        return growth / max(1.0, float(np.exp(min(rate, 700.0))))

    def halvings(self, h: float, most: int) -> int:
        """Return how often a step must be halved until it enlarges no more than the equation, ``most`` at most."""
        count = 0
        while count < most and self.excess(h / 2**count) > _FACTOR:
            count += 1
        return count

    def _propagated(self, h: float) -> Any:
        """Return the trajectory that derivatives are taken along."""
        sweep = self._network.sweep
        at = sweep.trajectory(1, sweep.image_block)
        sweep.forward(self._controls, np.array([h]), at)
        return at

    def _applied(self, h: float, at: Any, v: np.ndarray) -> np.ndarray:
        sweep = self._network.sweep
        tangent = sweep.trajectory(1, sweep.image_block)
        tangent.initial[:] = v
        return sweep.tangent(self._controls, self._controls.zeros(), np.array([h]), at, tangent)

    def _transposed(self, h: float, at: Any, w: np.ndarray) -> np.ndarray:
        sweep = self._network.sweep
        lam = sweep.field(sweep.image_block)
        lam[:] = w
        sweep.adjoint(self._controls, np.array([h]), at, lam)
        return lam

    def _norm(self, v: np.ndarray) -> float:
        v = v.astype(np.float64)
        return float(np.sqrt(self._network.comm.allreduce(float((v * v).sum()))))


def _rough(network: Network) -> np.ndarray:
    """Return a field of one image as rough as the mesh allows, the same however the mesh is distributed."""
    mesh, space = network.operators.mesh, network.space
    x = Function(VectorFunctionSpace(mesh, space.ufl_element())).interpolate(SpatialCoordinate(mesh)).dat.data_ro
    places = x.reshape(len(x), -1)
    phases = places @ (12.9898 * 1.6180339887 ** np.arange(places.shape[1]))
    field = network.sweep.field(network.sweep.image_block)
    field[:, :, 0] = np.modf(43758.5453 * np.sin(np.outer(phases, 1.0 + np.arange(network.features))))[0]
    return field
