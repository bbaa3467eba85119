"""The Gauss-Newton product and the explicit Schur matrix, against dense ones and against the Hessian."""

import numpy as np
import pytest
from mpi4py import MPI
from pyadjoint.enlisting import Enlist
from support.networks import small_network, small_problem
from support.points import arrays_of, gradient_at, like

import ctrlnet as cn
from ctrlnet.objective.losses import image_hessians
from ctrlnet.optimise import JointFunctional, ProjectedFunctional, SchurGaussNewton
from ctrlnet.optimise.schur import draw_in_proportion

LOSSES = [cn.SoftmaxCrossEntropy(), cn.LeastSquares()]


STEPS = {
    "Euler": dict(), "IMEX": dict(dynamics=cn.ReactionDiffusion(nu=0.4), integrator=cn.IMEX()),
    "RungeKutta": dict(integrator=cn.RungeKutta()),
}


def tiny(loss=None, count=24, steps="Euler", **settings):
    """A problem with 62 unknowns, W included, at a random point."""
    problem = small_problem(4, count, small_network(4, layers=2, **STEPS[steps]), loss=loss, **settings)
    rng = np.random.default_rng(1)
    point = problem.controls(rng, 0.3)
    for f in point[1:]:
        f.dat.data[:] = 0.3 * rng.standard_normal(f.dat.data_ro.shape)
    return problem, point


def joint(problem, point):
    functional = JointFunctional(problem, point)
    functional(list(point))
    return functional, problem.coordinates()


def dense(product, coordinates):
    """A matrix by its products with unit coordinates."""
    columns = [coordinates.dual_array(Enlist(product(coordinates.functions(e)))) for e in np.eye(coordinates.size)]
    return np.array(columns).T


def dense_jacobian(problem, point):
    """d(scores)/d(S, b, W, beta) by single-image gradients of linear functionals of the scores: (K n, unknowns)."""
    arrays = problem.point(point)
    rows = []
    for image in range(len(problem.average.sample)):
        for k in range(problem.readout.classes):
            q = np.zeros((problem.readout.classes, 1))
            q[k] = 1.0
            one = problem.average.over(np.array([image]))

            class Linear(cn.LeastSquares):
                def gradient(self, scores, labels, weights, q=q):
                    return q.copy()

            one.loss = Linear()
            rows.append(np.concatenate([g.ravel() for g in arrays_of(gradient_at(one, arrays))]))
    return np.array(rows)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_product_is_symmetric_semidefinite_and_j_transposed_h_j(loss):
    problem, point = tiny(loss)
    arrays = problem.point(point)
    at, shapes = problem.average.at(arrays.layers), [a.shape for a in arrays_of(arrays)]
    edges = np.cumsum([a.size for a in arrays_of(arrays)])[:-1]
    size = sum(a.size for a in arrays_of(arrays))

    def product(x):
        direction = like(arrays, [p.reshape(s) for p, s in zip(np.split(x, edges), shapes, strict=True)])
        return np.concatenate([g.ravel() for g in arrays_of(at.gauss_newton(arrays.W, arrays.beta, direction))])

    G = np.array([product(e) for e in np.eye(size)]).T
    scale = np.abs(G).max()
    assert np.abs(G - G.T).max() <= 1e-12 * scale, "G is symmetric"
    assert np.linalg.eigvalsh(G).min() >= -1e-12 * scale, "G is positive semidefinite for a convex loss"
    J = dense_jacobian(problem, point)
    n, K = len(problem.average.sample), problem.readout.classes
    scores = problem.average.scores(*arrays)
    H = image_hessians(loss, scores, problem.average.sample.labels, np.full(n, 1.0 / n))
    J = J.reshape(n, K, size)
    expected = np.einsum("ika,ikl,ilb->ab", J, H, J)
    assert np.abs(G - expected).max() <= 1e-10 * scale, "G = J^T H J"


@pytest.mark.parametrize("steps", ["Euler", "IMEX"])
def test_rows_are_the_gradients_of_single_images(steps):
    problem, point = tiny(count=40, steps=steps)
    layers, W, _ = problem.point(point)
    S, b, _ = layers.arrays
    q = np.random.default_rng(0).standard_normal((3, 40))
    rows = problem.average.at(layers).imagewise.rows(W, q)
    J = dense_jacobian(problem, point).reshape(40, 3, -1)[:, :, : S.size + b.size]
    expected = np.einsum("ika,ki->ai", J, q)
    found = np.concatenate([rows.coefficients.reshape(-1, 40), rows.biases.reshape(-1, 40)])
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


def test_the_product_is_the_hessian_where_the_residual_is_zero():
    """Least squares of scores that hit their targets: the loss's gradient vanishes, and with it all but J^T H J."""
    problem, point = tiny(cn.LeastSquares(), count=9)
    scores = problem.average.scores(*problem.point(point))

    class Fitted(cn.LeastSquares):
        """Distance to the scores at the point instead of to the unit vectors."""

        def gradient(self, c, labels, weights):
            return weights * (c - scores)

    problem.average.loss = Fitted()
    functional, coordinates = joint(problem, point)
    G, H = (dense(p, coordinates) for p in (functional.gauss_newton, functional.hessian))
    assert np.abs(G - H).max() <= 1e-12 * np.abs(G).max()
    problem.average.loss = cn.LeastSquares()
    functional, _ = joint(problem, point)
    assert np.abs(G - dense(functional.hessian, coordinates)).max() > 1e-3 * np.abs(G).max(), "elsewhere it is not"


def projected(loss, **settings):
    problem, point = tiny(loss, 40, control_scales=[1.0, 2.0, 3.0, 0.5], control_roughness=0.1, **settings)
    functional = ProjectedFunctional(problem, point[:2], inner_tolerance=1e-13)
    functional(list(point[:2]))
    return problem, functional, problem.coordinates(functional.names, time_scale=0.4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_projected_product_is_the_schur_complement_of_the_joint_one(loss):
    problem, functional, coordinates = projected(loss)
    G = dense(functional.gauss_newton, coordinates)
    assert np.abs(G - G.T).max() <= 1e-12 * np.abs(G).max()
    assert np.linalg.eigvalsh(G).min() > 0
    point = [*(c.control for c in functional.controls), *functional.classifier()]
    whole, all_coordinates = joint(problem, point)
    all_coordinates = problem.coordinates(time_scale=0.4)
    A = dense(whole.gauss_newton, all_coordinates)
    n = coordinates.size
    schur = A[:n, :n] - A[:n, n:] @ np.linalg.solve(A[n:, n:], A[n:, :n])
    assert np.abs(G - schur).max() <= 1e-10 * np.abs(G).max()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_explicit_matrix_of_all_images_and_directions_is_the_schur_complement(loss):
    problem, functional, coordinates = projected(loss)
    explicit = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 40, 3, damping=0.0)
    before = problem.work.copy()
    explicit.refresh()
    spent = problem.work - before
    sample = (40, problem.network.operators.nodes, 2)
    assert [spent.sweeps(k, *sample) for k in ("forward", "adjoint", "tangent")] == [1, 3, 0], "every sweep is counted"
    G = dense(functional.gauss_newton, coordinates)
    assert np.abs(explicit.matrix - G).max() <= 1e-11 * np.abs(G).max()
    x = np.random.default_rng(2).standard_normal(coordinates.size)
    assert np.allclose(explicit.solve(explicit.apply(x)), x, rtol=0, atol=1e-9)
    fewer = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 40, 2, damping=0.0)
    fewer.refresh()
    gap = np.linalg.eigvalsh(explicit.matrix - fewer.matrix)
    assert gap.min() >= -1e-10 * np.abs(G).max(), "directions left out take curvature away and add none"
    assert np.trace(fewer.matrix) > 0.8 * np.trace(explicit.matrix)


def test_a_draw_in_proportion_has_the_right_mean_and_no_image_twice():
    rng = np.random.default_rng(5)
    sizes = rng.random(50) ** 3
    sizes[:5] = 0.0
    values, estimates, counts = rng.random(50), [], []
    for _ in range(4000):
        chosen, probability = draw_in_proportion(sizes, 12, rng)
        assert np.unique(chosen).size == chosen.size and (sizes[chosen] > 0).all()
        counts.append(chosen.size)
        estimates.append((sizes[chosen] * values[chosen] / probability).sum())
    exact = (sizes * values).sum()
    assert abs(np.mean(estimates) - exact) < 4 * np.std(estimates) / np.sqrt(4000), "the estimate is unbiased"
    assert set(counts) <= {11, 12, 13} and np.std(estimates) < 0.2 * exact
    everything, sure = draw_in_proportion(sizes, 100, rng)
    assert everything.size == 45 and (sure == 1).all()


@pytest.mark.parametrize("settings", [dict(images=0), dict(directions=0), dict(directions=4), dict(damping=-1.0)])
def test_bad_settings_of_the_explicit_matrix_are_refused(settings):
    _, functional, coordinates = projected(cn.SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="1 <= directions <= 3.*received"):
        SchurGaussNewton(functional, coordinates, np.random.default_rng(0), **settings)


def test_steps_without_each_images_derivative_have_no_explicit_matrix():
    _, functional, coordinates = projected(cn.SoftmaxCrossEntropy(), steps="RungeKutta")
    with pytest.raises(ValueError, match="each image's own derivative.*RungeKutta.*Residual"):
        SchurGaussNewton(functional, coordinates, np.random.default_rng(0))


def test_coordinates_are_orthonormal_in_the_metric():
    """x.x is the inner product's UFL form; a derivative's pairing with a direction is that of its coordinates."""
    from firedrake import Constant, assemble, dx, elem_mult, grad, inner

    problem, point = tiny(control_scales=[1.0, 2.0, 3.0, 0.5])
    coordinates = problem.coordinates()
    s, b, W, beta = point
    x = coordinates.array(point)
    assert np.allclose(x, coordinates.array(coordinates.functions(x)), rtol=0, atol=1e-13)
    weights = Constant(np.repeat(np.array([1.0, 2.0, 3.0, 0.5]) ** 2, 4))
    expected = assemble(inner(elem_mult(weights, s), s) * dx) + assemble(inner(b, b) * dx)
    expected += 1e-2 * assemble(inner(grad(W), grad(W)) * dx) + assemble(inner(beta, beta) * dx)
    lumped = problem.readout.regularisation_matrix(0.0, 1e-2)
    values = W.dat.data_ro.reshape(lumped.shape[0], -1)
    expected += (values * (lumped @ values)).sum()
    assert x @ x == pytest.approx(expected, rel=1e-12)
    functional, _ = joint(problem, point)
    d = coordinates.functions(np.random.default_rng(3).standard_normal(x.size))
    pairing = functional.tlm(d)
    assert coordinates.dual_array(Enlist(functional.derivative())) @ coordinates.array(d) == pytest.approx(pairing)


def test_the_regularisations_solver_inverts_its_hessian():
    problem, _ = tiny(control_roughness=0.2)
    coordinates = problem.coordinates()
    solve = coordinates.regularisation_solver(0.5)
    x = np.random.default_rng(0).standard_normal(coordinates.size)
    blocks = [coordinates.regularisation_block(n) for n in coordinates.names]
    y = np.concatenate([
        (x[p] * 1e-2) if A is None else (A @ x[p].reshape(A.shape[0], -1)).ravel()
        for A, p in zip(blocks, coordinates.slices.values(), strict=True)])
    assert np.allclose(solve(y + 0.5 * x), x, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="must be positive, received 0"):
        coordinates.regularisation_solver(0)
    with pytest.raises(ValueError, match="named s, b, W, beta; received"):
        problem.coordinates(["weights"])


@pytest.mark.parallel(nprocs=[2, 3])
def test_products_and_the_explicit_matrix_on_several_ranks():
    found = []
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        problem = small_problem(count=40, network=small_network(comm=comm))
        s, b, W, beta = problem.controls(np.random.default_rng(0), 0.3)
        functional = ProjectedFunctional(problem, (s, b), inner_tolerance=1e-13)
        functional([s, b])
        coordinates = problem.coordinates(functional.names)
        x = np.random.default_rng(1).standard_normal(coordinates.size)
        explicit = SchurGaussNewton(functional, coordinates, np.random.default_rng(0), 15, 2)
        explicit.refresh()
        whole = JointFunctional(problem, [s, b, *functional.classifier()])
        whole([s, b, *functional.classifier()])
        product = Enlist(whole.gauss_newton([*coordinates.functions(x), *functional.classifier()]))
        found.append([
            coordinates.dual_array(Enlist(functional.gauss_newton(coordinates.functions(x)))), explicit.matrix,
            coordinates.dual_array(product[:2])])
    for split, whole in zip(*found, strict=True):
        difference = float(np.abs(split - whole).max() / np.abs(whole).max())
        assert MPI.COMM_WORLD.allreduce(difference, op=MPI.MAX) < 1e-8
