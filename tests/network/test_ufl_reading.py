"""Two readings of one formula: states and derivatives of the kernels are those of Firedrake's taped solves."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_WORLD, Function, FunctionSpace, RectangleMesh
from support.readings import compare_readings

import ctrlnet as cn
from ctrlnet.integrators import heun, midpoint, rk4, ssp3
from ctrlnet.network.plain import layer_controls, propagate_plain

EXPLICIT = {"euler": cn.ForwardEuler(), "heun": cn.RungeKutta(heun), "midpoint": cn.RungeKutta(midpoint),
            "ssp3": cn.RungeKutta(ssp3), "rk4": cn.RungeKutta(rk4)}
DYNAMICS = {
    "residual": cn.Residual(), "antisymmetric": cn.Antisymmetric(), "parabolic": cn.Parabolic(),
    "hyperbolic": cn.Hyperbolic(), "hamiltonian": cn.Hamiltonian(), "reaction-diffusion": cn.ReactionDiffusion(0.2),
    "learned diffusivity": cn.ReactionDiffusion(0.2, learned=True),
}
STIFF = {
    "reaction-diffusion": cn.ReactionDiffusion(0.2), "learned diffusivity": cn.ReactionDiffusion(0.2, learned=True),
    "antisymmetric + diffusion": cn.Antisymmetric() + cn.Diffusion(0.5),
    "parabolic + learned diffusion": cn.Parabolic() + cn.Diffusion(0.5, learned=True),
    "hyperbolic + learned diffusion": cn.Hyperbolic() + cn.Diffusion(0.5, learned=True),
}
PAIRS = [(f, s) for f in DYNAMICS.values() for s in EXPLICIT.values()]
PAIRS += [(DYNAMICS[name], cn.StoermerVerlet()) for name in ("hyperbolic", "hamiltonian")]
PAIRS += [(f, cn.IMEX()) for f in STIFF.values()]
NAMES = [f"{f}, {s}" for f in DYNAMICS for s in EXPLICIT] + ["hyperbolic, verlet", "hamiltonian, verlet"]
NAMES += [f"{f}, imex" for f in STIFF]


@pytest.mark.parametrize(("dynamics", "scheme"), PAIRS, ids=NAMES)
def test_both_readings_agree(make_case, annotation, dynamics, scheme):
    """On triangles: derivatives, learned parameters and second order included."""
    case = make_case(
        "triangle", layers=2, cells=2, images=1, T=0.15, degree=1, control_cells=2, dynamics=dynamics,
        integrator=scheme)
    compare_readings(case.network, case.m, case.Y0, list(case.perturbation()), annotation)


@pytest.mark.parametrize("name", ["antisymmetric", "hamiltonian"])
def test_adjoints_of_products_of_operators(make_case, annotation, name):
    """On quadrilaterals: the factors of a product are applied in reverse, with arguments exchanged."""

    def operators(V):
        return cn.Operators(V, [cn.derivative(1), cn.derivative(0) @ cn.laplacian])

    case = make_case(
        "quadrilateral", layers=1, cells=2, images=1, T=0.1, operators=operators, dynamics=DYNAMICS[name])
    compare_readings(case.network, case.m, case.Y0, list(case.perturbation()), annotation)


def test_a_nonlinear_stage_is_refused(make_case):
    case = make_case("triangle", layers=1, dynamics=cn.Residual(), integrator=cn.BackwardEuler())
    with pytest.raises(ValueError, match="nonlinear implicit stage is not read as UFL; explicit schemes and IMEX are"):
        propagate_plain(case.network, *layer_controls(case.network, case.m), case.Y0)


@pytest.mark.parallel(nprocs=2)
def test_both_readings_agree_on_two_ranks(annotation):
    """Where adjoints of operators, velocities and implicit diffusion with a learned parameter are at work."""
    D = cn.low_order_operators(FunctionSpace(RectangleMesh(3, 4, 3.0, 4.0, comm=COMM_WORLD), "CG", 1))
    stiff = STIFF["hyperbolic + learned diffusion"]
    for dynamics, scheme in ((stiff, cn.IMEX()), (cn.Hamiltonian(), cn.ForwardEuler())):
        space = cn.ControlSpace(0.2, 2, D, 2, parameters=dynamics.parameters)
        net = cn.Network(D, space, dynamics=dynamics, integrator=scheme)
        m, dm = space.random(np.random.default_rng(3), 0.3), space.random(np.random.default_rng(4), 0.1)
        for seed, f in enumerate((*m[1:], *dm[1:]), 5):
            f.dat.data[:] = 0.3 * np.random.default_rng(seed).standard_normal(f.dat.data_ro.shape)
        Y0, dY0 = (Function(net.state_space(1)) for _ in range(2))
        for f, seed in ((Y0, 17), (dY0, 18)):
            f.dat.data[:] = np.random.default_rng(seed + D.mesh.comm.rank).standard_normal(f.dat.data_ro.shape)
        compare_readings(net, m, Y0, [*dm, dY0], annotation)
