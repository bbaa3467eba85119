"""Every dynamics with every integrator that fits it: dense oracles, derivatives, orders, and what each conserves."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from firedrake import COMM_SELF, COMM_WORLD, FunctionSpace, RectangleMesh
from scipy.optimize import fsolve
from support.derivatives import check_derivatives, check_derivatives_whatever_the_memory
from support.networks import small_network
from support.ranks import assert_equal, propagation_numbers

import ctrlnet as cn
from ctrlnet.dynamics.activations import Activation
from ctrlnet.integrators import heun, midpoint, rk4, ssp3

softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))
EXPLICIT = {"euler": cn.ForwardEuler(), "heun": cn.RungeKutta(heun), "midpoint": cn.RungeKutta(midpoint),
            "ssp3": cn.RungeKutta(ssp3), "rk4": cn.RungeKutta(rk4)}
DYNAMICS = {
    "residual": cn.Residual, "antisymmetric": cn.Antisymmetric, "parabolic": cn.Parabolic,
    "hyperbolic": cn.Hyperbolic, "hamiltonian": cn.Hamiltonian,
    "reaction-diffusion": lambda activation=cn.tanh: cn.ReactionDiffusion(0.2, activation),
}
PAIRS = [(d, i) for d in DYNAMICS for i in EXPLICIT if (d, i) != ("residual", "euler")]
PAIRS += [("hyperbolic", "verlet"), ("hamiltonian", "verlet")]
TIGHT = {"snes_rtol": 1e-13, "snes_atol": 1e-13}
IMPLICIT = {"backward": cn.BackwardEuler(TIGHT), "implicit midpoint": cn.ImplicitMidpoint(TIGHT)}
PAIRS += [(d, i) for d in DYNAMICS for i in IMPLICIT]
SCHEMES = EXPLICIT | IMPLICIT | {"verlet": cn.StoermerVerlet(), "imex": cn.IMEX()}


class Dense:
    """The right-hand sides with dense matrices and NumPy, for states (parts, nodes, C, images)."""

    def __init__(self, network, dynamics):
        D = np.array([m[:, :] for m in network.operators.matrices])
        M = network.operators.mass
        self.D, self.name = D, dynamics
        self.adjoints = D.transpose(0, 2, 1) * M[None, None, :] / M[None, :, None]
        L = cn.Operators(network.space, [cn.laplacian]).matrices[0][:, :]
        self.L, self.C = L, network.features

    def K(self, S, Y):
        return np.einsum("joc,jnm,mci->noi", S, self.D, Y, optimize=True)

    def Kt(self, S, Z):
        return np.einsum("joc,jnm,moi->nci", S, self.adjoints, Z, optimize=True)

    def rate(self, S, b, X, sigma=np.tanh):
        Y = X[0]
        Z = self.K(S, Y) + b[:, None]
        if self.name == "residual":
            return sigma(Z)[None]
        if self.name == "antisymmetric":
            return sigma(Z - self.Kt(S, Y))[None]
        if self.name == "parabolic":
            return -self.Kt(S, sigma(Z))[None]
        if self.name == "hyperbolic":
            return np.stack([X[1], -self.Kt(S, sigma(Z))])
        if self.name == "reaction-diffusion":
            return (sigma(Z) + 0.2 * np.einsum("nm,mci->nci", self.L, Y))[None]
        half = self.C // 2
        first, second = S.copy(), S.copy()
        first[:, half:] = first[:, :, half:] = 0
        second[:, :half] = second[:, :, :half] = 0
        out = np.zeros_like(Y)
        out[:, :half] = self.Kt(second, sigma(self.K(second, Y) + b[:, None]))[:, half:]
        out[:, half:] = -self.Kt(first, sigma(self.K(first, Y) + b[:, None]))[:, :half]
        return out[None]

    def split(self, S, b, X, which):
        """The rate of one half alone."""
        rate = self.rate(S, b, X)
        keep = np.zeros_like(rate)
        if self.name == "hyperbolic":
            keep[which] = 1
        else:
            keep[0, :, : self.C // 2] = which == 0
            keep[0, :, self.C // 2 :] = which == 1
        return rate * keep


def dense_propagation(network, dynamics, scheme, s, b, Y0):
    dense = Dense(network, dynamics)
    S, B, _ = network.layers((s, b)).arrays
    images = Y0.function_space().value_size // network.features
    X = np.stack([Y0.dat.data_ro.reshape(-1, network.features, images)])
    if dynamics == "hyperbolic":
        X = np.stack([X[0], 0 * X[0]])
    m = len(S) // network.steps
    for k, h in enumerate(network.step_sizes):
        c = [(S[m * k + i], B[m * k + i]) for i in range(m)]
        if scheme == "verlet":
            X = X + h / 2 * dense.split(*c[0], X, 0)
            X = X + h * dense.split(*c[0], X, 1)
            X = X + h / 2 * dense.split(*c[0], X, 0)
            continue
        if scheme in IMPLICIT:
            theta = IMPLICIT[scheme].theta

            def residual(U, X=X, c=c[0], reach=theta * h):
                return (U.reshape(X.shape) - X - reach * dense.rate(*c, U.reshape(X.shape))).ravel()

            U = fsolve(residual, X.ravel(), xtol=1e-14).reshape(X.shape)
            X = X + (U - X) / theta
            continue
        tableau = {"heun": heun, "midpoint": midpoint, "ssp3": ssp3, "rk4": rk4}.get(scheme)
        A, weights = (np.zeros((1, 1)), (1.0,)) if tableau is None else (tableau.matrix, tableau.b)
        slopes = []
        for i in range(m):
            slopes.append(dense.rate(*c[i], X + h * sum((A[i, j] * slopes[j] for j in range(i)), 0 * X)))
        X = X + h * sum(w * f for w, f in zip(weights, slopes, strict=True))
    return X[0]


def case_of(make_case, dynamics, scheme, kind="triangle", activation=cn.tanh, **settings):
    # Short: an explicit step of fourth-order parabolic dynamics is stable for small steps only.
    defaults = dict(layers=2, cells=2, degree=1, control_cells=2, images=2, T=0.15)
    return make_case(kind, dynamics=DYNAMICS[dynamics](activation), integrator=SCHEMES[scheme], **(defaults | settings))


@pytest.mark.parametrize(("dynamics", "scheme"), PAIRS)
def test_value_is_that_of_dense_matrices(make_case, dynamics, scheme):
    for kind in ("triangle", "quadrilateral"):
        case = case_of(make_case, dynamics, scheme, kind)
        mine = cn.propagate(case.network, case.m, case.Y0).dat.data_ro
        expected = dense_propagation(case.network, dynamics, scheme, case.s, case.b, case.Y0)
        np.testing.assert_allclose(mine, expected.reshape(mine.shape), rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(("dynamics", "scheme"), PAIRS)
def test_dot_products_and_taylor(make_case, annotation, assert_taylor, dynamics, scheme):
    """<w, F' d> = <F'^* w, d> to 1e-12; remainders of order 2 with the gradient, 3 with the Hessian."""
    case = case_of(make_case, dynamics, scheme, activation=softplus if scheme == "heun" else cn.tanh)
    check_derivatives(case, annotation, assert_taylor)


@pytest.mark.parametrize(("degree", "cells"), [(1, 1), (0, 2)], ids=["linear", "piecewise constant"])
@pytest.mark.parametrize(("dynamics", "scheme"), [*PAIRS, ("residual", "euler"), ("reaction-diffusion", "imex")])
def test_order(make_case, dynamics, scheme, degree, cells):
    """The error falls by 2^order when the steps are halved, to 0.1, with controls that vary in time or jump."""
    case = case_of(make_case, dynamics, scheme, T=0.5, control_cells=cells, degree=degree)
    finals, errors, observed = [], [], []
    for steps in 2 ** np.arange(2, 11):
        net = case.network.with_depth(steps=int(steps))
        finals.append(cn.propagate(net, case.m, case.Y0).dat.data_ro.copy())
        if len(finals) > 1:
            errors.append(np.linalg.norm(finals[-1] - finals[-2]) / np.linalg.norm(finals[-1]))
            if errors[-1] < 1e-11:  # round-off is near
                break
        if len(errors) > 1:
            observed.append(np.log2(errors[-2] / errors[-1]))
    order = SCHEMES[scheme].order
    assert abs(observed[-1] - order) <= 0.1, f"declared order {order}, observed {observed}"


@pytest.mark.parametrize(("dynamics", "scheme"), [("hyperbolic", "verlet"), ("hamiltonian", "rk4")])
def test_training_problem_with_any_memory(assert_taylor, dynamics, scheme):
    """The gradient is the same with stored, recomputed and checkpointed states, and exact."""
    network = small_network(layers=5, T=0.5, dynamics=DYNAMICS[dynamics](), integrator=SCHEMES[scheme])
    check_derivatives_whatever_the_memory(network, assert_taylor)


def test_single_precision(make_case):
    for dynamics, scheme in (("hamiltonian", "verlet"), ("reaction-diffusion", "rk4")):
        states = [
            cn.propagate(case.network, case.m, case.Y0).dat.data_ro
            for case in (case_of(make_case, dynamics, scheme, precision=p) for p in ("double", "single"))
        ]
        difference = np.linalg.norm(states[0] - states[1]) / np.linalg.norm(states[0])
        assert 0 < difference < 50 * np.finfo(np.float32).eps


class TestStructure:
    """What each of the dynamics conserves or lets decay, with controls that are constant in time."""

    def states(self, make_case, dynamics, scheme, T, steps, activation=cn.tanh, biases=True):
        """The states of all parts at all steps, dense right-hand side and coefficients."""
        case = case_of(make_case, dynamics, scheme, layers=1, control_cells=1, degree=0, T=T, activation=activation)
        if not biases:
            case.b.assign(0.0)
        net = case.network.with_depth(steps=steps)
        layers = net.layers(case.m)
        S, b, _ = layers.arrays
        trajectory = net.sweep.trajectory(steps, net.sweep.image_block)
        trajectory.initial[:, :, :2] = case.Y0.dat.data_ro.reshape(-1, net.features, 2)
        net.sweep.forward(layers, net.step_sizes, trajectory)
        return net, Dense(net, dynamics), S[0], b[0], np.stack(trajectory.parts, axis=1)[..., :2]

    @staticmethod
    def potential(net, Z):
        """int log cosh Z dx, whose derivative is tanh."""
        return np.einsum("n,nci->", net.operators.mass, np.logaddexp(Z, -Z) - np.log(2))

    def energies(self, make_case, dynamics, scheme, T, steps):
        net, dense, S, b, states = self.states(make_case, dynamics, scheme, T, steps)
        half = net.features // 2
        if dynamics == "hamiltonian":
            S = S.copy()
            S[:, :half, half:] = S[:, half:, :half] = 0
        out = []
        for X in states:
            energy = self.potential(net, dense.K(S, X[0]) + b[:, None])
            if dynamics == "hyperbolic":
                energy += 0.5 * np.einsum("n,nci->", net.operators.mass, X[1] ** 2)
            out.append(energy)
        return np.array(out)

    @pytest.mark.parametrize("dynamics", ["hyperbolic", "hamiltonian"])
    def test_verlet_keeps_the_energy(self, make_case, dynamics):
        """Symplectic: |H(t) - H(0)| = O(h^2) for all time, without drift; forward Euler's energy grows."""
        T, steps = 8.0, 800
        coarse, fine = (self.energies(make_case, dynamics, "verlet", T, n) for n in (steps, 2 * steps))
        deviation = [np.abs(e - e[0]).max() / e[0] for e in (coarse, fine)]
        assert deviation[0] < 1e-2 and 3.5 < deviation[0] / deviation[1] < 4.5, f"not O(h^2): {deviation}"
        late = np.abs(coarse[3 * steps // 4 :] - coarse[0]).max()
        early = np.abs(coarse[: steps // 4] - coarse[0]).max()
        assert late < 2 * early, "the energy of a symplectic scheme does not drift"
        euler = self.energies(make_case, dynamics, "euler", T, steps)
        assert euler[-1] - euler[0] > 10 * np.abs(coarse - coarse[0]).max(), "forward Euler gains energy"

    def test_parabolic_energy_decays(self, make_case):
        """A gradient flow: the energy decays at every step, and states with the same controls approach."""
        energies = self.energies(make_case, "parabolic", "euler", 1.0, 400)
        assert (np.diff(energies) < 0).all() and energies[-1] < 0.9 * energies[0]
        net, _, _, _, states = self.states(make_case, "parabolic", "euler", 1.0, 400)
        gap = states[:, 0, :, :, 0] - states[:, 0, :, :, 1]
        distance = np.einsum("n,knc->k", net.operators.mass, gap**2)
        assert (np.diff(distance) <= 0).all(), "monotone: |Y - Y'| does not grow"

    def test_antisymmetric_keeps_the_norm(self, make_case):
        """With sigma(z) = z and b = 0, d|Y|^2/dt = 2 <Y, (K - K*) Y> = 0: the norm deviates by O(h^4) only."""
        deviations = []
        for steps in (64, 128):
            net, _, _, _, states = self.states(make_case, "antisymmetric", "rk4", 1.0, steps, cn.identity, False)
            norms = np.einsum("n,knci->k", net.operators.mass, states[:, 0] ** 2)
            deviations.append(np.abs(norms / norms[0] - 1).max())
            assert np.linalg.norm(states[-1] - states[0]) > 0.1 * np.linalg.norm(states[0]), "the state moves"
        assert deviations[0] < 1e-3 and deviations[0] / deviations[1] > 14

    def test_antisymmetric_is_stable(self, make_case):
        """The Jacobian of the rate has an imaginary spectrum at every state, whatever K."""
        net, dense, S, b, states = self.states(make_case, "antisymmetric", "rk4", 1.0, 8)
        A = np.einsum("joc,jnm->nomc", S, dense.D) - np.einsum("jco,jnm->nomc", S, dense.adjoints)
        Z = np.einsum("nomc,mc->no", A, states[-1, 0, :, :, 0]) + b
        n = Z.size
        spectrum = np.linalg.eigvals((1 - np.tanh(Z.ravel()) ** 2)[:, None] * A.reshape(n, n))
        assert np.abs(spectrum.real).max() < 1e-10 * np.abs(spectrum).max()


class TestRefusals:
    """A pair that does not fit, or a tableau that is not what it says, fails when it is built."""

    @pytest.mark.parametrize("dynamics", ["residual", "antisymmetric", "parabolic", "reaction-diffusion"])
    def test_verlet_needs_two_halves(self, make_network, dynamics):
        with pytest.raises(ValueError, match="alternates between two halves.*fits Hyperbolic and Hamiltonian"):
            make_network("triangle", dynamics=DYNAMICS[dynamics](), integrator=cn.StoermerVerlet())

    def test_hamiltonian_needs_an_even_number_of_features(self, make_network):
        with pytest.raises(ValueError, match="two halves; received 3 features. Use an even number"):
            make_network("triangle", features=3, dynamics=cn.Hamiltonian(), integrator=cn.StoermerVerlet())

    @pytest.mark.parametrize(("a", "b", "order", "message"), [
        (((0.5,),), (0.5, 0.5), 2, "condition of order 2 gives 0.25 instead of 0.5"),
        ((), (0.9,), 1, "condition of order 1 gives 0.9 instead of 1"),
        (((1.0,),), (0.5, 0.5), 3, "declares order 3, but a condition of order 3"),
        (((1.0, 2.0),), (0.5, 0.5), 2, r"rows must have 1 to 1 numbers; received rows of \[2\]"),
        (((1.0,),), (0.5, 0.5), 5, "conditions are known for 1 to 4"),
        (((2.0,),), (0.75, 0.25), 2, "controls exist within the step"),
    ])
    def test_tableau(self, a, b, order, message):
        with pytest.raises(ValueError, match=message):
            cn.Tableau("wrong", a, b, order)


@pytest.mark.parallel(nprocs=[2, 3])
def test_same_numbers_on_any_number_of_ranks(annotation):
    """State, gradient and Hessian product where adjoints of operators, diffusion and velocities are at work."""

    def numbers(comm, quadrilateral, dynamics, scheme):
        V = FunctionSpace(RectangleMesh(7, 6, 3.5, 3.0, quadrilateral=quadrilateral, comm=comm), "CG", 1)
        D = cn.low_order_operators(V)
        pair = dict(dynamics=DYNAMICS[dynamics](), integrator=SCHEMES[scheme])
        network = cn.Network(D, cn.ControlSpace(0.1, 3, D, 2), **pair)
        return propagation_numbers(network, annotation)

    for setting in (
        (True, "hyperbolic", "verlet"), (False, "hamiltonian", "verlet"), (False, "antisymmetric", "rk4"),
        (True, "reaction-diffusion", "heun"), (False, "parabolic", "euler"),
    ):
        assert_equal(numbers(COMM_WORLD, *setting), numbers(COMM_SELF, *setting))
