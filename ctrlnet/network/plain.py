r"""The plain route: the network's own formula in Firedrake's language, taped operation by operation by pyadjoint.

A step is what scheme and dynamics write down, read by :class:`~ctrlnet.formulas.ufl_reading.UflReading`: for explicit
schemes and IMEX, whatever the dynamics. It is slow, one form for all features of all images, and is the oracle of the
kernels' route: both discretise alike, so values and derivatives agree to round-off.

*Controls.* The fused route has controls in time. A form on the state's mesh must find its coefficients there,
so here each layer has a pair of its own, piecewise constant in space, that :func:`layer_controls` fills with
the values of (s, b), learned parameters after b. (Firedrake has no derivatives with respect to vectors of the space
"R" of constants.) The derivative with respect to the layer's numbers is the sum over the cells,
:func:`layer_derivatives`, and that with respect to the control in time is :math:`E^T` of it with
E = ``network.sampling``, as on the fused route.

States are in double precision whatever ``network.precision`` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from firedrake import (
    Cofunction,
    Constant,
    Function,
    VectorFunctionSpace,
)
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint import stop_annotating

from ctrlnet.controls import ControlsLike
from ctrlnet.formulas.ufl_reading import UflReading
from ctrlnet.integrators.base import step_formula
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.network.network import Network

__all__ = ["layer_controls", "layer_derivatives", "layer_spaces", "propagate_plain"]


def layer_spaces(network: Network) -> tuple[WithGeometry, WithGeometry]:
    """Return the spaces of one layer's s (J C C components, the C-order flattening of ``s[j, out, in]``) and b (C).

    Learned parameters follow the biases.
    """
    J, C, P = len(network.operators), network.features, len(network.control_space.parameters)
    return tuple(VectorFunctionSpace(network.operators.mesh, "DG", 0, dim=n) for n in (J * C * C, C + P))


def layer_controls(network: Network, m: ControlsLike) -> tuple[list[Function], list[Function]]:
    r"""Return controls in time, sampled at the steps' times, as constants in space: one pair a layer.

    Parameters
    ----------
    network
        Gives the mesh and the times.
    m
        Controls, of which those in time are taken.

    Returns
    -------
    s_layers, b_layers
        N Functions each, not annotated: they are the controls of this route.
    """
    spaces = layer_spaces(network)
    with stop_annotating():
        layers = network.layers(m)
        arrays = layers.coefficients, np.concatenate([layers.biases, layers.parameters], axis=1)
        s, b = ([_constant(V, values) for values in a] for V, a in zip(spaces, arrays, strict=True))
        return s, b


def _constant(space: WithGeometry, values: np.ndarray) -> Function:
    out = Function(space)
    out.dat.data[:] = values.reshape(out.dat.data_ro.shape[1:])
    return out


def layer_derivatives(
    network: Network, s_layers: Sequence[Cofunction], b_layers: Sequence[Cofunction]
) -> LayerControls:
    """Return derivatives with respect to the layers' numbers: the sum over all cells of those of this route.

    Parameters
    ----------
    network
        Gives the shapes.
    s_layers, b_layers
        N derivatives each, in the duals of :func:`layer_spaces`.

    Returns
    -------
    LayerControls
        The same on every rank; ``network.cofunctions`` of it is the derivative with respect to the controls in time.
    """
    C, sums = network.features, []
    for layers, shape in ((s_layers, (len(network.operators), C, C)), (b_layers, (-1,))):
        own = np.array([layer.dat.data_ro.sum(axis=0).reshape(shape) for layer in layers])
        sums.append(network.comm.allreduce(own))
    return LayerControls(sums[0], *np.split(sums[1], [C], axis=1))


def propagate_plain(
    network: Network, s_layers: Sequence[Function], b_layers: Sequence[Function], Y0: Function
) -> Function:
    r"""Return Y(T), every operation annotated by pyadjoint itself.

    Parameters
    ----------
    network
        Operators, dynamics, number and size of the steps. Its fused kernels are not used.
    s_layers, b_layers
        A Function a stage of each step, in :func:`layer_spaces`; see :func:`layer_controls`.
    Y0
        Initial state in ``network.state_space(images)``; a few images, since the form has a term for each.

    Returns
    -------
    Function
        Y(T) in the space of Y0.

    Raises
    ------
    ValueError
        If there is not one pair of controls for each stage of each step, Y0 is on another mesh or has no multiple of C
        components, or the scheme's step is no formula.
    """
    rows = len(network.sampling)
    if not len(s_layers) == len(b_layers) == rows:
        raise ValueError(
            f"A network of {network.steps} steps needs {rows} controls of each kind; received {len(s_layers)} s and "
            f"{len(b_layers)} b. Use layer_controls(network, m)."
        )
    space = Y0.function_space()
    if space.mesh() is not network.operators.mesh or space.value_size % network.features:
        raise ValueError(
            f"Y0 has {space.value_size} components on {space.mesh()}; a state needs a multiple of "
            f"{network.features} components on {network.operators.mesh}. Use network.state_space(images)."
        )
    dynamics, stages = network.dynamics, rows // network.steps
    formula = step_formula(network.integrator, dynamics)
    state = [Y0, *(Function(space) for _ in range(dynamics.parts - 1))]
    for k, h in enumerate(network.step_sizes):
        step = slice(k * stages, (k + 1) * stages)
        reading = UflReading(
            network.operators, space, network.features, dynamics.parameters, s_layers[step], b_layers[step],
            Constant(h))
        state = reading.step(formula, state)
    return state[0]
