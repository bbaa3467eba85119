"""Every kind of target: the loss by its definition, all derivatives, variable projection, every way of training."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Constant,
    Ensemble,
    Function,
    FunctionSpace,
    VectorFunctionSpace,
    as_vector,
    assemble,
    dot,
    exp,
    inner,
    ln,
)
from support.derivatives import agree
from support.networks import blobs, small_network, square
from support.points import arrays_of, like
from support.ranks import assert_equal, on_ranks
from support.targets import COUNT, IMAGES, KINDS, NODES, places, problem_of, start_of, targets_of

import ctrlnet as cn
from ctrlnet.fields import Classes, NodalClasses, NodalFields, NodalValues, Numbers
from ctrlnet.objective import LeastSquares, Logistic, NodalReadout, Point
from ctrlnet.operators import lumped_dx
from ctrlnet.optimise import (
    FirstOrder,
    JointFunctional,
    Limits,
    ProjectedFunctional,
    SampleSchedule,
    TaoOptimiser,
)
from ctrlnet.optimise.classifier.problem import ClassifierProblem
from ctrlnet.optimise.first_order import constant_rate
from ctrlnet.optimise.presets import LINE_SEARCH


def random_like(point, seed):
    rng = np.random.default_rng(seed)
    return like(point, [rng.standard_normal(a.shape) for a in arrays_of(point)])


def states_of(problem, m):
    """Y(T) of all images by the propagation that pyadjoint knows, (owned, C, images)."""
    network, sample = problem.network, problem.average.sample
    Y0 = Function(network.state_space(len(sample)))
    nodal = sample.inputs.onto(network.space).nodal(sample.inputs, 0, len(sample))
    opened = Y0.dat.data.reshape(-1, network.features, len(sample))
    network.opening.open(network.layers(m), nodal, opened)
    return cn.propagate(network, m, Y0).dat.data_ro.reshape(opened.shape)


class TestDefinition:
    """The loss by forms of UFL at the nodes, and by plain sums over images."""

    @pytest.mark.parametrize("kind", NODES)
    def test_at_nodes(self, kind):
        problem = problem_of(kind, control_size=0.0, weights_gradient=0.0, weights_size=0.0)
        m = start_of(problem)
        network, targets = problem.network, problem.average.sample.targets
        W, beta = problem.readout.arrays(m)
        states, V = states_of(problem, m), network.space
        values, density = targets.values(0, COUNT), targets.density(0, COUNT)
        expected = 0.0
        for i in range(COUNT):
            mask = Function(V)
            mask.dat.data[:] = density[:, i]
            Y = Function(VectorFunctionSpace(V.mesh(), V.ufl_element(), dim=network.features))
            Y.dat.data[:] = states[:, :, i]
            c = as_vector([dot(Constant(W[:, k]), Y) + Constant(beta[k]) for k in range(W.shape[1])])
            y = Function(VectorFunctionSpace(V.mesh(), V.ufl_element(), dim=W.shape[1]))
            if "classes" in kind:
                y.dat.data[:] = np.eye(3)[values[:, i]]
                loss = ln(sum(exp(c[k]) for k in range(3))) - inner(c, y)
            else:
                y.dat.data[:] = values[:, :, i].T
                loss = inner(c - y, c - y) / 2
            weight = {"relative field": mask * inner(y, y)}.get(kind, mask)
            by = 1.0 if kind in ("field", "masked field") else assemble(weight * lumped_dx())
            expected += assemble(mask * loss * lumped_dx()) / by / COUNT
        assert problem.average_loss(m) == pytest.approx(expected, rel=1e-12)

    def test_class_weights(self):
        """The mean in which an image counts as much as its class weighs."""
        problem = problem_of("weighted classes")
        point = problem.point(start_of(problem))
        scores, labels = problem.average.scores(*point), blobs(COUNT).labels
        losses = np.log(np.exp(scores).sum(axis=0)) - scores[labels, np.arange(COUNT)]
        w = np.array([1.0, 3.0, 0.5])[labels]
        assert problem.average.at(point.layers).value(point.W, point.beta) == pytest.approx(w @ losses / w.sum())
        right = scores.argmax(axis=0) == labels
        assert problem.average.accuracy(*point) == pytest.approx(w @ right / w.sum())

    @pytest.mark.parametrize("kind", ["numbers", "relative numbers"])
    def test_numbers(self, kind):
        problem = problem_of(kind)
        point = problem.point(start_of(problem))
        y = problem.average.sample.targets.of_images().values
        error = ((problem.average.scores(*point) - y) ** 2).sum(axis=0) / 2
        expected = (error / (y**2).sum(axis=0) if "relative" in kind else error).mean()
        assert problem.average.at(point.layers).value(point.W, point.beta) == pytest.approx(expected)

    def test_answers(self):
        problem = problem_of("answers")
        point = problem.point(start_of(problem))
        y = problem.average.sample.targets.of_images().values
        p = 1 / (1 + np.exp(-problem.average.scores(*point)))
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(axis=0).mean()
        assert problem.average.at(point.layers).value(point.W, point.beta) == pytest.approx(expected)


class TestDerivatives:
    @pytest.mark.parametrize("kind", KINDS)
    def test_taylor_remainders_are_of_order_two_and_three(self, kind, assert_taylor, normal_function):
        problem = problem_of(kind)
        m = start_of(problem)
        rng = np.random.default_rng(3)
        assert_taylor(problem.reduced_functional(m), m, [normal_function(f.function_space(), rng, 0.1) for f in m])

    @pytest.mark.parametrize("kind", NODES[:3])
    @pytest.mark.parametrize("mesh", ["triangle", "hexahedron", "sphere", "interval"])
    def test_taylor_on_other_meshes(self, mesh, kind, make_network, assert_taylor, normal_function):
        network = make_network(mesh)
        V, rng = network.space, np.random.default_rng(3)
        x = places(V)
        inputs = rng.random((4, 1, len(x)))
        wave = np.sin(3 * x.sum(axis=1) + np.arange(4)[:, None])
        targets = (NodalFields(V, wave[:, None]) if kind == "field"
                   else NodalClasses(V, np.digitize(wave, [-0.3, 0.4]), 3))
        sample = cn.Sample(NodalValues(V, inputs), targets)
        loss = LeastSquares() if kind == "field" else None
        problem = cn.TrainingProblem(NodalReadout(network, targets.components), sample, loss)
        m = start_of(problem)
        assert_taylor(problem.reduced_functional(m), m, [normal_function(f.function_space(), rng, 0.1) for f in m])

    @pytest.mark.parametrize("kind", KINDS)
    def test_products_are_of_one_function(self, kind):
        problem = problem_of(kind)
        point = problem.point(start_of(problem))
        layers, W, beta = point
        d, e = random_like(point, 5), random_like(point, 6)
        at = problem.average.at(layers)
        assert at.tangent(W, beta, d) == pytest.approx(at.gradient(W, beta).dot(d), rel=1e-12)
        assert at.hessian(W, beta, d).dot(e) == pytest.approx(at.hessian(W, beta, e).dot(d), rel=1e-11)
        product = at.gauss_newton(W, beta, d)
        assert product.dot(e) == pytest.approx(at.gauss_newton(W, beta, e).dot(d), rel=1e-11)
        assert product.dot(d) > 0
        for one, other in zip(at.layers_gradient(W, beta).arrays, at.gradient(W, beta).layers.arrays, strict=True):
            assert np.array_equal(one, other)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_memory_limit_changes_no_number(self, kind, monkeypatch):
        monkeypatch.setattr("ctrlnet.objective.chunks._BYTES", 1)
        found = []
        for limit in (2**30, 60_000, 0):
            problem = problem_of(kind, memory_limit=limit, count=40)
            point = problem.point(start_of(problem))
            layers, W, beta = point
            at = problem.average.at(layers)
            d = random_like(point, 5)
            found.append([np.array(at.value(W, beta)), *at.gradient(W, beta).arrays, *at.hessian(W, beta, d).arrays])
        assert len(problem.average.trajectories.chunks) > 1
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                assert np.array_equal(a, b)


class TestVariableProjection:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_reduced_gradient_is_of_order_two(self, kind, assert_taylor, normal_function):
        problem = problem_of(kind)
        m = start_of(problem).restricted(problem.network.control_set.names)
        rng = np.random.default_rng(3)
        J = ProjectedFunctional(problem, m, inner_tolerance=1e-14)
        assert_taylor(J, m, [normal_function(f.function_space(), rng, 0.1) for f in m])

    @pytest.mark.parametrize("kind", ["class vectors", "numbers", "relative numbers", *NODES[2:]])
    def test_least_squares_take_one_newton_step(self, kind):
        problem = problem_of(kind)
        problem.average.loss = LeastSquares()
        inner = inner_problem(problem)
        shape = problem.readout.features, problem.readout.classes
        solution = inner.solve(np.zeros(shape), np.zeros(shape[1]), tolerance=1e-12, most_krylov=500)
        again = inner.solve(solution.W.copy(), solution.beta.copy(), tolerance=1e-10)
        W, beta = np.zeros(shape), np.zeros(shape[1])
        g = inner.gradient(W, beta)
        step = -inner.hessian_solver(W, beta)(g)
        assert np.abs(inner.gradient(step[:-1], step[-1])).max() < 1e-10 * np.abs(g).max()
        assert again.newton_iterations == 1

    @pytest.mark.parametrize("kind", NODES[:2])
    def test_newton_converges_quadratically_at_nodes(self, kind):
        problem = problem_of(kind)
        inner = inner_problem(problem)
        W, beta = np.zeros((problem.readout.features, 3)), np.zeros(3)
        norms = []
        for _ in range(7):
            g = inner.gradient(W, beta)
            norms.append(np.linalg.norm(g))
            step = -inner.hessian_solver(W, beta)(g)
            W, beta = W + step[:-1], beta + step[-1]
        fast = [(a, b) for a, b in zip(norms, norms[1:], strict=False) if a < 1e-2 * norms[0] and b > 1e-15]
        assert fast and all(b < 100 * a**2 / norms[0] for a, b in fast), norms
        assert norms[-1] < 1e-13 * norms[0]


def inner_problem(problem):
    """The classifier's problem at random controls."""
    average, regularisation = problem.average, problem.regularisation
    features = average.at(problem.point(start_of(problem)).layers).features()
    return ClassifierProblem(features, regularisation.weights_matrix, regularisation.ridge, average.loss, average.comm)


class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_levels_and_drawn_samples(self, kind):
        problem = problem_of(kind)
        s, b = problem.network.control_space.random(np.random.default_rng(0), 0.3)
        result = cn.train_level(problem, (s, b), iterations=3)
        assert result.history.last.objective < result.history.iterations[0].objective
        drawn = cn.train_level(
            problem, (s, b), iterations=2, rng=np.random.default_rng(1), schedule=SampleSchedule(8, 2.0, 2))
        assert drawn.history.last.images == COUNT

    @pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
    @pytest.mark.parametrize("make", [JointFunctional, ProjectedFunctional], ids=["joint", "projected"])
    @pytest.mark.parametrize("kind", ["numbers", "masked classes at nodes", "field"])
    def test_newton(self, kind, make, curvature):
        problem = problem_of(kind)
        start = start_of(problem)
        names = problem.control_set.names if make is JointFunctional else problem.network.control_set.names
        solver = TaoOptimiser(make(problem, start.restricted(names)), LINE_SEARCH, Limits(2), curvature=curvature)
        solver.solve()
        objectives = solver.history.column("objective")
        assert objectives[-1] < objectives[0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_mini_batches(self, kind):
        problem = problem_of(kind)
        solver = FirstOrder(
            JointFunctional(problem, start_of(problem)), np.random.default_rng(1), rate=0.03, batch=10,
            schedule=constant_rate, limits=Limits(8), evaluate_every=8)
        solver.solve()
        first, last = solver.history.iterations
        assert last.objective < first.objective

    @pytest.mark.parametrize("kind", ["numbers", "masked classes at nodes", "relative field"])
    def test_several_meshes(self, kind):
        """From coarse to fine, then on both at once."""
        problems = []
        for cells in (3, 6):
            problems.append(problem_of(kind, network=(
                small_network(3, layers=2) if cells == 3
                else problems[0].network.on(FunctionSpace(square(6), "CG", 1))), work=(
                    None if cells == 3 else problems[0].work)))
        problems[1] = on_one_readout_space(problems[1], problems[0])
        m = problems[0].network.control_space.random(np.random.default_rng(0), 0.3)
        results = cn.train_multiscale(problems, m, iterations=2)
        for result in results:
            assert result.history.last.objective < result.history.iterations[0].objective
        levels = cn.MultilevelAverage([p.average for p in problems], rng=np.random.default_rng(0))
        both = problems[1].with_average(levels)
        result = cn.train_level(both, results[-1].controls, iterations=2)
        assert result.history.last.objective < result.history.iterations[0].objective
        FirstOrder(
            JointFunctional(both, result.controls), np.random.default_rng(1), batch=10, limits=Limits(2)).solve()

    def test_no_explicit_matrix_where_a_column_is_no_image(self):
        from ctrlnet.optimise import SchurGaussNewton

        problem = problem_of("field")
        functional = ProjectedFunctional(problem, start_of(problem))
        with pytest.raises(ValueError, match="every node has scores of its own"):
            SchurGaussNewton(functional, problem.coordinates(functional.names), np.random.default_rng(0))


def on_one_readout_space(problem, other):
    """The problem with the readout space of another, for readouts that have one on a mesh."""
    if problem.readout.space is other.readout.space:
        return problem
    readout = problem.readout.on(problem.network, other.readout.space)
    return cn.TrainingProblem(readout, problem.average.sample, problem.average.loss, work=problem.work,
                              control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)


def test_targets_that_are_constant_over_the_domain():
    """States that are constant in space: one class at every node is the class of the image, on the unit square."""
    from firedrake import UnitSquareMesh

    D = cn.low_order_operators(FunctionSpace(UnitSquareMesh(4, 4, quadrilateral=True), "CG", 1))
    network = cn.Network(D, cn.ControlSpace(1.0, 2, D, 2))
    rng, labels = np.random.default_rng(0), np.arange(12) % 3
    images = np.broadcast_to(rng.random((12, 1, 1)) + 0.3 * labels[:, None, None], (12, 4, 4))
    one_cell = FunctionSpace(UnitSquareMesh(1, 1, quadrilateral=True), "DG", 0)
    settings = dict(control_size=1e-3, weights_gradient=0.0, weights_size=1e-2)
    whole = cn.TrainingProblem(cn.Readout(network, 3, one_cell), cn.Sample(images, labels, 3), **settings)
    at_nodes = NodalClasses(network.space, np.repeat(labels[:, None], 25, axis=1), 3)
    nodal = cn.TrainingProblem(NodalReadout(network, 3), cn.Sample(images, at_nodes), **settings)
    m = network.control_space.random(rng, 0.3)
    found = [cn.train_level(problem, m, iterations=5) for problem in (whole, nodal)]
    one, other = (result.history.column("objective") for result in found)
    agree(np.array(one), np.array(other), "the objective of every iteration")
    for name in ("s", "b", "W", "beta"):
        ours, theirs = (result.controls[name].dat.data_ro.ravel() for result in found)
        assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


def numbers_of(kind, comm, ensemble=None):
    """Loss, gradient, Hessian product, accuracy and what variable projection finds."""
    problem = problem_of(kind, comm=comm, ensemble=ensemble)
    point = problem.point(start_of(problem))
    layers, W, beta = point
    d = random_like(point, 5)
    if kind in IMAGES:  # a classifier on a mesh: a direction by place, not by number
        d = Point(d.layers, np.zeros(W.shape), d.beta)
    at = problem.average.at(layers)
    out = {"J": np.array(at.value(W, beta))}
    functional = ProjectedFunctional(problem, start_of(problem), inner_tolerance=1e-13)
    out["J*"] = np.array(float(functional([c.control for c in functional.controls])))
    for name, found in (("gradient", at.gradient(W, beta)), ("Hessian", at.hessian(W, beta, d)),
                        ("Gauss-Newton", at.gauss_newton(W, beta, d))):
        in_any_order = found.layers.arrays if kind in IMAGES else found.arrays
        out |= {f"{name} {k}": array for k, array in enumerate(in_any_order) if array.size}
    return out


@on_ranks
@pytest.mark.parametrize("kind", ["weighted classes", "relative numbers", "masked classes at nodes", "relative field"])
def test_the_same_numbers_on_any_number_of_ranks(kind):
    assert_equal(numbers_of(kind, COMM_WORLD), numbers_of(kind, COMM_SELF))


@pytest.mark.parallel(nprocs=3)
@pytest.mark.parametrize("kind", ["relative numbers", "masked classes at nodes"])
def test_the_same_numbers_with_an_ensemble(kind):
    ensemble = Ensemble(COMM_WORLD, 1)
    assert_equal(numbers_of(kind, ensemble.comm, ensemble), numbers_of(kind, COMM_SELF))


class TestBadInput:
    network = staticmethod(lambda: small_network(2))

    def test_targets_of_images_at_nodes_and_the_reverse(self):
        network = self.network()
        images = blobs(COUNT).images
        with pytest.raises(ValueError, match="Readout"):
            cn.SampleAverage(NodalReadout(network, 3), cn.Sample(images, Classes(blobs(COUNT).labels, 3)))
        targets = targets_of("classes at nodes", network.space)
        with pytest.raises(ValueError, match="NodalReadout"):
            cn.SampleAverage(cn.Readout(network, 3), cn.Sample(images, targets))

    def test_labels_at_the_nodes_of_another_mesh(self):
        targets = targets_of("classes at nodes", self.network().space)
        with pytest.raises(ValueError, match="nodes|space"):
            cn.SampleAverage(NodalReadout(small_network(4), 3), cn.Sample(blobs(COUNT).images, targets))

    def test_a_readout_of_other_components(self):
        sample = cn.Sample(blobs(COUNT).images, Numbers(np.ones((COUNT, 2))))
        with pytest.raises(ValueError, match="2 classes or components, the readout 3"):
            cn.SampleAverage(cn.Readout(self.network(), 3), sample, LeastSquares())

    def test_losses_of_other_targets(self):
        sample = cn.Sample(blobs(COUNT).images, Numbers(np.full((COUNT, 2), 2.0)))
        readout = cn.Readout(self.network(), 2)
        with pytest.raises(ValueError, match="SoftmaxCrossEntropy takes classes, integers; received .*LeastSquares"):
            cn.SampleAverage(readout, sample)
        with pytest.raises(ValueError, match="Logistic takes numbers from 0 to 1, received .* between 2 and 2"):
            cn.SampleAverage(readout, sample, Logistic())

    def test_accuracy_of_numbers(self):
        problem = problem_of("numbers")
        with pytest.raises(ValueError, match="no share of right ones.*relative error"):
            problem.average.accuracy(*problem.point(start_of(problem)))

    def test_a_sample_without_targets(self):
        with pytest.raises(ValueError, match="no targets"):
            cn.SampleAverage(cn.Readout(self.network(), 3), cn.Sample(blobs(3).images, None))

    def test_a_mask_that_leaves_nothing(self):
        V = self.network().space
        labels = np.zeros((3, V.dim()), dtype=int)
        with pytest.raises(ValueError, match="leave|nothing"):
            targets = NodalClasses(V, labels, 2, mask=np.array([[True], [False], [True]]) & (labels == 0))
            problem = cn.TrainingProblem(NodalReadout(small_network(2).on(V), 2), cn.Sample(blobs(3).images, targets))
            problem.average_loss(problem.controls())
