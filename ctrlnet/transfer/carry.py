r"""A trained network to another mesh, another depth, or both at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from firedrake import Function

from ctrlnet.controls import ControlSpace
from ctrlnet.operators import Operators
from ctrlnet.transfer.coefficient_map import CoefficientMap

if TYPE_CHECKING:
    from ctrlnet.network import Network

__all__ = ["carry"]


def carry(
    network: Network, s: Function, b: Function, V=None, *,
    kernels: Callable[[Operators, Operators], CoefficientMap] | None = None, controls: ControlSpace | None = None,
    steps: int | None = None,
) -> tuple[Network, Function, Function]:
    """Return the network with its controls on another mesh, with other layers, or both.

    Parameters
    ----------
    network, s, b
        What was trained.
    V
        Scalar space of the new mesh. Default: the network's own.
    kernels
        Makes the map of coefficients from the operators here and there, for example
        :func:`~ctrlnet.transfer.galerkin` to a coarser mesh and :func:`~ctrlnet.transfer.galerkin_prolongation` to a
        finer one. Default: rediscretisation, the coefficients stay.
    controls
        A finer control space of the same time hierarchy, to which s and b are prolonged. Default: the network's own.
    steps
        Number of time steps; by default they grow with the control cells.

    Raises
    ------
    ValueError
        If ``controls`` is no finer level of the network's time hierarchy.
    """
    moved = network if V is None else network.on(V)
    if kernels is not None:
        s = kernels(network.operators, moved.operators)(s)
    if controls is not None and controls is not network.controls:
        cells = network.controls.cells
        if not network.controls.precedes(controls):
            raise ValueError(
                f"A control space of {controls.cells} cells does not refine the network's, which has {cells}. Take "
                "network.controls.finer(), once or more."
            )
        s, b = network.controls.prolong(s, b, controls)
        steps = network.steps * (controls.cells // cells) if steps is None else steps
    if controls is None and steps is None:
        return moved, s, b
    return moved.with_depth(controls, network.steps if steps is None else steps), s, b
