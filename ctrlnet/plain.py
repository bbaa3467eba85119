r"""The plain route: the network in Firedrake's own language, taped operation by operation by pyadjoint.

Nothing here is written by hand but the equations. One step is

.. math::

    \int_L Z_o v_o \,dx = \sum_{j,c} s_j[o,c]\, a_j(Y_c, v_o) + \int_L b_o v_o\,dx \quad \forall v \in V,
    \qquad Y \leftarrow Y + h\,\sigma(Z),

a variational solve with the lumped mass, which is diagonal, and a nodal update; the operators' forms
:math:`a_j` are used as the user wrote them. It is slow, one form for all features of all images, and is there

* as the oracle of the fused route: both discretise alike, so values and derivatives agree to round-off;
* as the door for a user's own state equation: any other step goes in the place of :func:`plain_step`, and
  pyadjoint differentiates it.

*Controls.* The fused route has controls in time. A form on the state's mesh must find its coefficients there,
so here each layer has a pair of its own, piecewise constant in space, that :func:`layer_controls` fills with
the values of (s, b). (Firedrake has no derivatives with respect to vectors of the space "R" of constants.) The
derivative with respect to the layer's numbers is the sum over the cells, :func:`layer_derivatives`, and that
with respect to the control in time is :math:`E^T` of it with E = ``network.sampling``, as on the fused route.

States are in double precision whatever ``network.precision`` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import ufl
from firedrake import (
    Cofunction,
    Constant,
    Function,
    TestFunction,
    TrialFunction,
    VectorFunctionSpace,
    as_vector,
    solve,
    split,
)
from firedrake.functionspaceimpl import WithGeometry
from pyadjoint import stop_annotating

from ctrlnet.integrators import IMEX
from ctrlnet.network import Network
from ctrlnet.operators import Form, lumped_dx

__all__ = ["layer_controls", "layer_derivatives", "layer_spaces", "plain_step", "propagate_plain"]

# Exact for a diagonal matrix: one multiplication by its inverse.
_DIAGONAL_SOLVE = {"ksp_type": "preonly", "pc_type": "jacobi"}


def layer_spaces(network: Network) -> tuple[WithGeometry, WithGeometry]:
    """Return the spaces of one layer's s (J C C components, the C-order flattening of ``s[j, out, in]``) and b (C).

    The components of b are those of the control in time: learned parameters follow the biases.
    """
    controls = network.controls
    return tuple(
        VectorFunctionSpace(network.operators.mesh, "DG", 0, dim=V.value_size)
        for V in (controls.s_space, controls.b_space))


def layer_controls(network: Network, s: Function, b: Function) -> tuple[list[Function], list[Function]]:
    r"""Return controls in time, sampled at the steps' times, as constants in space: one pair a layer.

    Parameters
    ----------
    network
        Gives the mesh and the times.
    s, b
        Functions in ``network.controls.s_space`` and ``b_space``.

    Returns
    -------
    s_layers, b_layers
        N Functions each, not annotated: they are the controls of this route.
    """
    spaces = layer_spaces(network)
    with stop_annotating():
        arrays = network.layers(s, b)
        return tuple([_constant(V, values) for values in a] for V, a in zip(spaces, arrays, strict=True))


def _constant(space: WithGeometry, values: np.ndarray) -> Function:
    out = Function(space)
    out.dat.data[:] = values.reshape(out.dat.data_ro.shape[1:])
    return out


def layer_derivatives(
    network: Network, s_layers: Sequence[Cofunction], b_layers: Sequence[Cofunction]
) -> tuple[np.ndarray, np.ndarray]:
    """Return derivatives with respect to the layers' numbers: the sum over all cells of those of this route.

    Parameters
    ----------
    network
        Gives the shapes.
    s_layers, b_layers
        N derivatives each, in the duals of :func:`layer_spaces`.

    Returns
    -------
    gS, gb
        (N, J, C, C) and (N, C), the same on every rank; ``network.controls.s_cofunction(network.sampling, gS)``
        is the derivative with respect to the control in time.
    """
    C = network.features
    sums = []
    for layers, shape in ((s_layers, (len(network.operators), C, C)), (b_layers, (-1,))):
        own = np.array([layer.dat.data_ro.sum(axis=0).reshape(shape) for layer in layers])
        sums.append(network.comm.allreduce(own))
    return tuple(sums)


def propagate_plain(
    network: Network, s_layers: Sequence[Function], b_layers: Sequence[Function], Y0: Function
) -> Function:
    r"""Return Y(T) by forward Euler or IMEX Euler, every operation annotated by pyadjoint itself.

    Parameters
    ----------
    network
        Operators, dynamics, number and size of the steps. Its fused kernels are not used.
    s_layers, b_layers
        N Functions each, in :func:`layer_spaces`; see :func:`layer_controls`.
    Y0
        Initial state in ``network.state_space(images)``; a few images, since the form has a term for each.

    Returns
    -------
    Function
        Y(T) in the space of Y0.

    Raises
    ------
    ValueError
        If there is not one pair of controls a step, or Y0 is on another mesh or has no multiple of C
        components.
    """
    if not len(s_layers) == len(b_layers) == network.steps:
        raise ValueError(
            f"A network of {network.steps} steps needs as many controls; received {len(s_layers)} s and "
            f"{len(b_layers)} b. Use layer_controls(network, s, b)."
        )
    space = Y0.function_space()
    if space.mesh() is not network.operators.mesh or space.value_size % network.features:
        raise ValueError(
            f"Y0 has {space.value_size} components on {space.mesh()}; a state needs a multiple of "
            f"{network.features} components on {network.operators.mesh}. Use network.state_space(images)."
        )
    Y = Y0
    for s, b, h in zip(s_layers, b_layers, network.step_sizes, strict=True):
        Y = plain_step(network, s, b, Y, Constant(h))
    return Y


def plain_step(network: Network, s: Function, b: Function, Y: Function, h: Constant) -> Function:
    r"""Return :math:`Y + h f(KY + b)`, one step of forward Euler; under IMEX the solve follows."""
    Z = _stencils(network, s, b, Y)
    rate = network.dynamics.right_hand_side
    following = as_vector([y + h * rate(z) for y, z in zip(split(Y), split(Z), strict=True)])
    # Nodal, as an interpolation is: at a vertex only its own basis function differs from zero. But of a
    # nonlinear interpolation Firedrake has no second derivatives.
    V = Y.function_space()
    right = ufl.inner(following, TestFunction(V)) * lumped_dx()
    if not isinstance(network.integrator, IMEX):
        return _mass_solve(right, V)
    u, v, out = TrialFunction(V), TestFunction(V), Function(V)
    r = split(b)[-1] if network.dynamics.learned else 0.0
    left = ufl.inner(u, v) * lumped_dx() - h * network.dynamics.diffusion(u, v, r)
    solve(left == right, out, solver_parameters={"ksp_type": "preonly", "pc_type": "lu"})
    return out


def _stencils(network: Network, s: Function, b: Function, Y: Function) -> Function:
    r"""Return :math:`Z = \sum_j s_j D_j Y + b`.

    A product of operators is solved factor after factor: all but the one applied last here, that one in the
    form of Z. Factors that products share are solved once.
    """
    C = network.features
    coefficients = ufl.as_tensor(np.reshape(split(s), (len(network.operators), C, C)).tolist())
    biases = split(b)
    v = _split_features(TestFunction(Y.function_space()), C)
    products: dict[tuple[int, ...], Function] = {(): Y}
    form = 0
    for j, operator in enumerate(network.operators.operators):
        last = operator.factors[0] if operator.factors else None
        y = _split_features(_product(operator.factors[1:], Y, products), C)
        for i in range(len(y)):
            for o in range(C):
                mixed = sum(coefficients[j, o, c] * y[i][c] for c in range(C))
                form += _bilinear(last, mixed, v[i][o])
    for image in v:
        for o in range(C):
            form += biases[o] * image[o] * lumped_dx()
    return _mass_solve(form, Y.function_space())


def _product(factors: tuple[Form, ...], Y: Function, known: dict[tuple[int, ...], Function]) -> Function:
    """Return the product of operators applied to Y, the first factor applied last."""
    key = tuple(id(f) for f in factors)
    if key not in known:
        inner = _product(factors[1:], Y, known)
        pairs = zip(split(inner), split(TestFunction(Y.function_space())), strict=True)
        known[key] = _mass_solve(sum(_bilinear(factors[0], y, v) for y, v in pairs), Y.function_space())
    return known[key]


def _bilinear(form: Form | None, u: ufl.core.expr.Expr, v: ufl.core.expr.Expr) -> ufl.Form:
    return u * v * lumped_dx() if form is None else form(u, v)


def _split_features(field: Function, features: int) -> list[list[ufl.core.expr.Expr]]:
    """Return the components of a state as a list of images of lists of features; the image index is fastest."""
    components = split(field)
    images = len(components) // features
    return [[components[c * images + i] for c in range(features)] for i in range(images)]


def _mass_solve(form: ufl.Form, space: WithGeometry) -> Function:
    r"""Return :math:`M_L^{-1}` of a linear form, V* -> V."""
    u, v = TrialFunction(space), TestFunction(space)
    out = Function(space)
    solve(ufl.inner(u, v) * lumped_dx() == form, out, solver_parameters=_DIAGONAL_SOLVE)
    return out
