r"""A trained network to another mesh, another depth, or both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from firedrake.functionspaceimpl import WithGeometry

from ctrlnet.controls import Controls, ControlsLike, ControlSpace, as_controls
from ctrlnet.network.stability import warn_of_long_steps
from ctrlnet.operators.assembled import Operators
from ctrlnet.transfer.coefficient_map import CoefficientMap

if TYPE_CHECKING:
    from ctrlnet.network.network import Network

__all__ = ["carry"]


def carry(
    network: Network, m: ControlsLike, V: WithGeometry | None = None, *,
    kernels: Callable[[Operators, Operators], CoefficientMap] | None = None,
    control_space: ControlSpace | None = None, steps: int | Sequence[float] | np.ndarray | None = None,
) -> tuple[Network, Controls]:
    """Return the network with its controls on another mesh, with other layers, or both.

    Parameters
    ----------
    network
        What was trained.
    m
        Its controls. A classifier among them stays as it is: its mesh is its own.
    V
        Scalar space of the new mesh. Default: the network's own.
    kernels
        Makes the map of coefficients from the operators here and there, for example
        :func:`~ctrlnet.transfer.galerkin` to a coarser mesh and :func:`~ctrlnet.transfer.galerkin_prolongation` to a
        finer one. Default: rediscretisation, the coefficients stay.
    control_space
        A finer one of the same time hierarchy, to which the controls in time are prolonged. Default: the network's own.
    steps
        Number of time steps, or their times; by default they grow with the control cells.

    Raises
    ------
    ValueError
        If ``control_space`` is no finer level of the network's time hierarchy, or a control is not finite.
    """
    old = network.control_space
    given = as_controls(m, network.control_set.names)
    network.control_set.check_finite(given)
    in_time = old.control_set.controls(given)
    moved = network if V is None else network.on(V)
    if kernels is not None:
        in_time = in_time.replace(s=kernels(network.operators, moved.operators)(in_time.s))
    if control_space is not None and control_space is not old:
        if not old.precedes(control_space):
            raise ValueError(
                f"A control space of {control_space.cells} cells does not refine the network's, which has {old.cells}. "
                "Take network.control_space.finer(), once or more."
            )
        in_time = old.prolong(in_time, control_space)
        steps = network.divided(control_space.cells // old.cells) if steps is None else steps
    if control_space is not None or steps is not None:
        moved = moved.with_depth(control_space, network.depth if steps is None else steps)
    carried = given.replace(**in_time.by_name())
    warn_of_long_steps(moved, carried)
    return moved, carried
