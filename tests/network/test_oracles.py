"""Two independent oracles: a convolutional network on pixel grids, and the plain route taped by pyadjoint."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from firedrake import (
    Constant,
    Function,
    FunctionSpace,
    PeriodicRectangleMesh,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
    assemble,
    dot,
    ds,
    dx,
    exp,
    grad,
    inner,
)
from firedrake.adjoint import Control, ReducedFunctional
from pyadjoint.adjfloat import exp as adjoint_exp
from pyadjoint.adjfloat import log as adjoint_log
from scipy.ndimage import correlate

from ctrlnet import (
    Activation,
    ControlSpace,
    FixedOpening,
    Network,
    Operator,
    Operators,
    Readout,
    Residual,
    Sample,
    TrainingProblem,
    derivative,
    laplacian,
    low_order_operators,
    propagate,
    relu,
    smoothed_relu,
    stencil_operators,
    tanh,
)
from ctrlnet.fields import PixelProjection
from ctrlnet.network.plain import layer_controls, layer_derivatives, propagate_plain
from ctrlnet.operators import identity as identity_operator
from ctrlnet.operators import lumped_dx
from ctrlnet.operators.stencils import to_stencil

softsign = Activation("softsign", lambda z: z / (1 + abs(z)))
softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))
RNG_SEED = 8


class TestConvolution:
    """Forward Euler on a uniform quadrilateral mesh is a 3x3 convolutional residual network."""

    features, images, layers = 3, 2, 3
    shape, h = (11, 12), (0.5, 0.25)

    def setup(self, mesh, activation):
        V = FunctionSpace(mesh, "CG", 1)
        D = stencil_operators(V)
        controls = ControlSpace(0.9, self.layers, D, self.features)
        network = Network(D, controls, dynamics=Residual(activation))
        rng = np.random.default_rng(RNG_SEED)
        s, b = controls.random(rng)
        # Coefficients of kernels of size 1: those of high derivatives are small.
        S = 0.3 * rng.standard_normal((self.layers, 9, self.features**2))
        norms = np.abs(D.table.forward.dense(D.table.nodes)).sum(axis=2).max(axis=1)
        s.dat.data[:] = (S / norms[:, None]).reshape(s.dat.data_ro.shape)
        b.dat.data[:] = rng.standard_normal(b.dat.data_ro.shape)
        return network, s, b, rng

    def convolve(self, network, s, b, pictures, sigma, mode):
        """Propagate pictures (x, y, C, images) by SciPy's correlation, layer by layer, kernel by kernel."""
        S, biases, _ = network.layers((s, b)).arrays
        Y = pictures
        for coefficients, bias, step in zip(S, biases, network.step_sizes, strict=True):
            kernels = to_stencil(coefficients, self.h)
            Z = np.zeros_like(Y)
            for i in range(Y.shape[-1]):
                for out in range(self.features):
                    Z[:, :, out, i] = bias[out] + sum(
                        correlate(Y[:, :, c, i], kernels[:, :, out, c], mode=mode) for c in range(self.features)
                    )
            Y = Y + step * sigma(Z)
        return Y

    def grid(self, V):
        """Return the grid indices (nodes, 2) of the nodes; a periodic grid counts modulo its size."""
        x, y = SpatialCoordinate(V.mesh())
        places = np.stack([Function(V).interpolate(c).dat.data_ro for c in (x, y)], axis=1)
        return np.rint(places / self.h).astype(int)

    def propagate(self, network, s, b, pictures, index):
        Y0 = Function(network.state_space(self.images))
        Y0.dat.data[:] = pictures[tuple(index.T)].reshape(Y0.dat.data_ro.shape)
        result = np.full_like(pictures, np.nan)
        result[tuple(index.T)] = propagate(network, (s, b), Y0).dat.data_ro.reshape(-1, self.features, self.images)
        return result

    @pytest.mark.parametrize(("activation", "sigma"), [(tanh, np.tanh), (relu, lambda z: np.maximum(z, 0))])
    def test_periodic_mesh_everywhere(self, activation, sigma):
        """With wrapped convolution, at every node."""
        mesh = PeriodicRectangleMesh(
            *self.shape, *(n * h for n, h in zip(self.shape, self.h, strict=True)), quadrilateral=True
        )
        network, s, b, rng = self.setup(mesh, activation)
        # Interpolated coordinates take one of the two values that a node on the seam has.
        index = self.grid(network.space) % self.shape
        assert len({tuple(i) for i in index}) == np.prod(self.shape)
        pictures = rng.standard_normal((*self.shape, self.features, self.images))
        expected = self.convolve(network, s, b, pictures, sigma, "wrap")
        result = self.propagate(network, s, b, pictures, index)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("activation", "sigma"), [(tanh, np.tanh), (relu, lambda z: np.maximum(z, 0))])
    def test_natural_boundary_where_it_has_not_reached(self, activation, sigma):
        """N layers carry the boundary N nodes inwards, and no further; there it does differ."""
        mesh = RectangleMesh(*self.shape, *(n * h for n, h in zip(self.shape, self.h, strict=True)), quadrilateral=True)
        network, s, b, rng = self.setup(mesh, activation)
        nodes = tuple(n + 1 for n in self.shape)
        pictures = rng.standard_normal((*nodes, self.features, self.images))
        expected = self.convolve(network, s, b, pictures, sigma, "constant")
        result = self.propagate(network, s, b, pictures, self.grid(network.space))
        error = np.abs(result - expected).max(axis=(2, 3))
        N = self.layers
        assert error[N:-N, N:-N].max() < 1e-12, "convolution at every node that the boundary has not reached"
        assert error[N - 1, N:-N].max() > 1e-6, "the boundary reaches one node further each layer"


def user_operators(V):
    """A user's own: variable diffusion with a flux through the boundary, a wind, and a product of operators."""
    x = SpatialCoordinate(V.mesh())
    kappa = exp(-dot(x, x) / 8)
    wind = Operator("wind", (lambda u, v: dot(Constant((1.0, -0.5)), grad(u)) * v * dx(degree=2),))
    diffusion = Operator("diffusion", (lambda u, v: -kappa * inner(grad(u), grad(v)) * dx(degree=3) - u * v * ds,))
    return Operators(V, [identity_operator, wind, diffusion, derivative(0) @ derivative(1), laplacian @ diffusion])


class TestPlainRoute:
    """The same network in native Firedrake, taped by pyadjoint: values and every derivative agree to 1e-10."""

    @pytest.mark.parametrize(
        ("kind", "operators", "activation"),
        [
            ("quadrilateral", stencil_operators, tanh),
            ("quadrilateral", low_order_operators, softsign),
            ("quadrilateral", user_operators, smoothed_relu(0.2)),
            ("triangle", low_order_operators, tanh),
            ("triangle", user_operators, softplus),
            ("triangle", low_order_operators, relu),
            ("interval", stencil_operators, tanh),
            ("hexahedron", low_order_operators, softplus),
        ],
    )
    def test_state_and_gradient(self, make_case, annotation, kind, operators, activation):
        case = make_case(kind, operators=operators, activation=activation, cells=3, layers=2)
        self.compare(case, annotation)

    @pytest.mark.parametrize(("degree", "control_cells"), [(0, 2), (1, 2)])
    def test_controls_that_several_steps_share(self, make_case, annotation, degree, control_cells):
        """dJ/ds = E^T (dJ/ds_1, ..., dJ/ds_N)."""
        self.compare(make_case("triangle", layers=3, degree=degree, control_cells=control_cells), annotation)

    def compare(self, case, annotation):
        net = case.network
        with annotation() as tape:
            Y = propagate(net, case.m, case.Y0)
            fused = ReducedFunctional(
                assemble(inner(Y, Y) ** 2 * dx), [Control(c) for c in (case.s, case.b, case.Y0)], tape=tape
            )
            final = Y.dat.data_ro.copy()
        s_layers, b_layers = layer_controls(net, case.m)
        with annotation() as tape:
            Y = propagate_plain(net, s_layers, b_layers, case.Y0)
            J = assemble(inner(Y, Y) ** 2 * dx)
            plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers, case.Y0)], tape=tape)
        agree(Y.dat.data_ro, final, "Y(T)")
        agree(float(J), float(fused([case.s, case.b, case.Y0])), "J")
        *layers, gY0 = plain.derivative()
        expected = (*net.cofunctions(layer_derivatives(net, layers[: net.steps], layers[net.steps :])), gY0)
        for what, mine, oracle in zip(("s", "b", "Y0"), fused.derivative(), expected, strict=True):
            agree(mine.dat.data_ro, oracle.dat.data_ro, f"dJ/d{what}")

    def test_second_order(self, make_case, annotation):
        """The Hessian in one direction, against pyadjoint's own."""
        case = make_case("triangle", layers=2)
        net = case.network
        with annotation() as tape:
            Y = propagate(net, case.m, case.Y0)
            fused = ReducedFunctional(assemble(inner(Y, Y) ** 2 * dx), [Control(case.s), Control(case.b)], tape=tape)
        s_layers, b_layers = layer_controls(net, case.m)
        with annotation() as tape:
            Y = propagate_plain(net, s_layers, b_layers, case.Y0)
            J = assemble(inner(Y, Y) ** 2 * dx)
            plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers)], tape=tape)
        ds, db, _ = case.perturbation()
        ds_layers, db_layers = layer_controls(net, (ds, db))
        for functional in (fused, plain):
            functional.derivative()
        result = fused.hessian([ds, db])
        layers = plain.hessian([*ds_layers, *db_layers])
        expected = net.cofunctions(layer_derivatives(net, layers[: net.steps], layers[net.steps :]))
        agree(result[0].dat.data_ro, expected.s.dat.data_ro, "H ds")
        agree(result[1].dat.data_ro, expected.b.dat.data_ro, "H db")

    @pytest.mark.parametrize(("kind", "activation"), [("quadrilateral", tanh), ("triangle", softplus)])
    def test_training_problem(self, make_network, normal_function, annotation, kind, activation):
        """Scores, softmax cross-entropy and regularisation of the plain route: J and dJ/d(s, b, W, beta)."""
        network = make_network(kind, activation=activation, layers=2, cells=3, opening=FixedOpening([1.0, 0.5]))
        rng = np.random.default_rng(RNG_SEED)
        sample = Sample(rng.random((3, 6, 6)), np.array([2, 0, 1]), 3)
        readout = Readout(network, 3)
        problem = TrainingProblem(readout, sample, control_size=0.0, weights_gradient=0.03, weights_size=0.2)
        s, b, W, beta = (normal_function(f.function_space(), rng, 0.3) for f in problem.controls())
        fused = problem.reduced_functional((s, b, W, beta))

        state = network.state_space(len(sample))
        Y0 = Function(state)
        lifted = np.empty((network.space.dim(), network.features, len(sample)))
        nodal = PixelProjection(network.space, sample.pixels)(sample.images)
        network.opening.open(network.layers((s, b)), nodal[:, None, :], lifted)
        Y0.dat.data[:] = lifted.reshape(Y0.dat.data_ro.shape)
        s_layers, b_layers = layer_controls(network, (s, b))
        # The biases of the scores: a number a class, integrated as a density over the mesh.
        bias = Function(VectorFunctionSpace(network.operators.mesh, "DG", 0, dim=3))
        bias.dat.data[:] = beta.dat.data_ro.ravel()
        volume = float(network.operators.mass.sum())
        with annotation() as tape:
            Y = propagate_plain(network, s_layers, b_layers, Y0)
            J = 0.0
            for i, label in enumerate(sample.labels):
                scores = [score(network, Y, i, len(sample), W, bias, k, 3, volume) for k in range(3)]
                J += (adjoint_log(sum(adjoint_exp(c) for c in scores)) - scores[label]) / len(sample)
            J += assemble(0.03 / 2 * inner(grad(W), grad(W)) * dx + 0.2 / 2 * inner(W, W) * lumped_dx())
            J += assemble(0.2 / 2 / volume * inner(bias, bias) * lumped_dx())
            plain = ReducedFunctional(J, [Control(c) for c in (*s_layers, *b_layers, W, bias)], tape=tape)
        agree(float(J), float(fused([s, b, W, beta])), "J")
        *layers, gW, gbias = plain.derivative()
        expected = network.cofunctions(layer_derivatives(network, layers[:2], layers[2:]))
        mine = [g.dat.data_ro for g in fused.derivative()]
        agree(mine[0], expected.s.dat.data_ro, "dJ/ds")
        agree(mine[1], expected.b.dat.data_ro, "dJ/db")
        agree(mine[2], gW.dat.data_ro, "dJ/dW")
        agree(mine[3].ravel(), gbias.dat.data_ro.sum(axis=0), "dJ/dbeta")

    def test_bad_input(self, make_case, make_network):
        case = make_case("triangle", layers=2)
        s_layers, b_layers = layer_controls(case.network, case.m)
        with pytest.raises(ValueError, match="network of 2 steps needs 2 controls of each kind; received 1 s and 2 b"):
            propagate_plain(case.network, s_layers[:1], b_layers, case.Y0)
        other = Function(make_network("triangle", cells=4).state_space(1))
        with pytest.raises(ValueError, match=r"Y0 has 2 components on .*Use network\.state_space\(images\)"):
            propagate_plain(case.network, s_layers, b_layers, other)


def score(network, Y, image, images, W, bias, k, classes, volume):
    r"""Return c_k = int w_k . Y dx + beta_k, by vertex quadrature."""
    terms = sum(W[c * classes + k] * Y[c * images + image] for c in range(network.features))
    return assemble((terms + bias[k] / volume) * lumped_dx())


def agree(mine, oracle, what):
    mine, oracle = np.array(mine, dtype=float), np.array(oracle, dtype=float)
    error, size = np.abs(mine - oracle).max(), np.abs(oracle).max()
    assert size > 0, f"{what} is zero: nothing is compared"
    assert error <= 1e-10 * size, f"{what} differs from the oracle by {error / size:.1e} of its size"
