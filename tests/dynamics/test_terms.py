"""Sums of terms, and a term that a newcomer writes: a learned damping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from firedrake import Function
from support.derivatives import check_derivatives
from support.readings import compare_readings

import ctrlnet as cn
from ctrlnet.formulas.language import Language, State


@dataclass(frozen=True)
class Damping(cn.Dynamics):
    r""":math:`\dot Y = -e^{r(t)} Y`, r the control ``log_damping``."""

    parameters = ("log_damping",)

    def rate(self, language: Language, stage: int, state: State) -> State:
        return State(-language.grow(Y, stage, "log_damping") for Y in state)


DAMPED = cn.Antisymmetric() + Damping()
BOTH = cn.Residual() + Damping() + cn.Diffusion(0.3, learned=True)
PAIRS = [
    (DAMPED, cn.ForwardEuler()), (DAMPED, cn.RungeKutta()), (DAMPED, cn.BackwardEuler({"snes_rtol": 1e-13})),
    (BOTH, cn.IMEX()), (BOTH, cn.RungeKutta()),
    (cn.Antisymmetric() + cn.Diffusion(0.5), cn.IMEX()),
    (cn.Hyperbolic() + cn.Diffusion(0.5, learned=True), cn.IMEX()),
    (cn.ReactionDiffusion(0.4, learned=True), cn.ForwardEuler()),
    (cn.ReactionDiffusion(0.4, learned=True), cn.RungeKutta()),
    (cn.ReactionDiffusion(0.4, learned=True), cn.BackwardEuler({"snes_rtol": 1e-13})),
]


@pytest.mark.parametrize(("dynamics", "scheme"), PAIRS, ids=lambda a: getattr(a, "name", type(a).__name__))
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, dynamics, scheme):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    case = make_case("triangle", cells=2, layers=2, T=0.15, degree=1, control_cells=2, dynamics=dynamics,
                     integrator=scheme)
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize(
    ("dynamics", "scheme"), [(DAMPED, cn.ForwardEuler()), (BOTH, cn.IMEX())], ids=["Euler", "IMEX"])
def test_the_ufl_reading_needs_no_more(make_case, annotation, dynamics, scheme):
    """State, gradient and Hessian product of a newcomer's term, read as UFL, to 1e-10."""
    case = make_case("triangle", cells=2, images=1, layers=2, T=0.15, degree=1, control_cells=2, dynamics=dynamics,
                     integrator=scheme)
    compare_readings(case.network, case.m, case.Y0, list(case.perturbation()), annotation)


def test_a_sum_written_out_is_the_one_that_has_a_name(make_case):
    """Bit for bit, in either order."""
    states = []
    for dynamics in (cn.ReactionDiffusion(0.4), cn.Residual() + cn.Diffusion(0.4), cn.Diffusion(0.4) + cn.Residual()):
        case = make_case("triangle", dynamics=dynamics, integrator=cn.IMEX())
        states.append(cn.propagate(case.network, case.m, case.Y0).dat.data_ro.copy())
    np.testing.assert_array_equal(states[1], states[0])
    np.testing.assert_array_equal(states[2], states[0])


def test_damping_alone_is_an_exponential(make_case):
    """(1 - h e^r)^N for forward Euler."""
    case = make_case("triangle", layers=3, T=0.6, dynamics=Damping())
    case.m.log_damping.dat.data[:] = np.log(0.5)
    Y = cn.propagate(case.network, case.m, case.Y0)
    np.testing.assert_allclose(Y.dat.data_ro, 0.9**3 * case.Y0.dat.data_ro, rtol=1e-13)


def test_terms_that_do_not_go_together_are_refused(make_network):
    with pytest.raises(ValueError, match=r"Hyperbolic \+ Residual is a sum for states of 2 parts, and Residual .* 1"):
        cn.Hyperbolic() + cn.Residual()
    with pytest.raises(ValueError, match="needs a name of its own, and Diffusion.*log_diffusivity"):
        cn.Diffusion(0.1, learned=True) + cn.Diffusion(0.2, learned=True)
    with pytest.raises(ValueError, match=r"IMEX treats stiff terms .* Antisymmetric \+ Damping dynamics have none"):
        make_network("triangle", dynamics=DAMPED, integrator=cn.IMEX())
    with pytest.raises(ValueError, match=r"two halves of a system, and Hamiltonian \+ Diffusion dynamics have none"):
        make_network("triangle", dynamics=cn.Hamiltonian() + cn.Diffusion(0.1), integrator=cn.StoermerVerlet())


def test_a_diffusivity_that_leaves_its_range_is_an_error_on_the_traced_route(make_network):
    dynamics = cn.Antisymmetric() + cn.Diffusion(0.1, learned=True)
    network = make_network("triangle", dynamics=dynamics, integrator=cn.IMEX())
    m = network.control_space.zero()
    m.log_diffusivity.dat.data[:] = 30.0
    with pytest.raises(cn.PropagationError, match=r"nu exp\(r\) left its range: received r = 30"):
        cn.propagate(network, m, Function(network.state_space(1)))
