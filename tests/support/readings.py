"""Both readings of a network's formula: the kernels' numbers against those of Firedrake's solves taped by pyadjoint."""

from firedrake import assemble, dx, inner
from firedrake.adjoint import Control, ReducedFunctional

import ctrlnet as cn
from ctrlnet.network.plain import layer_controls, layer_derivatives, propagate_plain
from support.derivatives import agree_to_round_off


def compare_readings(net, m, Y0, directions, annotation):
    """State, gradient and Hessian product with respect to all controls and Y0."""
    points = (*m, Y0)
    with annotation() as tape:
        Y = cn.propagate(net, m, Y0)
        fused = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in points], tape=tape)
        final = Y.dat.data_ro.copy()
    s_layers, b_layers = layer_controls(net, m)
    with annotation() as tape:
        Y = propagate_plain(net, s_layers, b_layers, Y0)
        plain = ReducedFunctional(
            assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in (*s_layers, *b_layers, Y0)], tape=tape)
    agree_to_round_off(final, Y.dat.data_ro, "Y(T)", net.comm)
    ds_layers, db_layers = layer_controls(net, directions[:-1])
    results = {
        "gradient": (fused.derivative(), plain.derivative()),
        "Hessian product": (fused.hessian(directions), plain.hessian([*ds_layers, *db_layers, directions[-1]])),
    }
    for what, (mine, (*layers, field)) in results.items():
        expected = (*net.cofunctions(layer_derivatives(net, layers[: len(s_layers)], layers[len(s_layers) :])), field)
        for name, a, e in zip((*m.names, "Y0"), mine, expected, strict=True):
            agree_to_round_off(a.dat.data_ro, e.dat.data_ro, f"{what} {name}", net.comm)
