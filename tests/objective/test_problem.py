"""The training problem as a reduced functional: Taylor tests of every control, its parts, memory, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from firedrake import FunctionSpace, RectangleMesh, assemble
from firedrake.adjoint import Control, ReducedFunctional
from pyadjoint import annotate_tape, get_working_tape, pause_annotation
from scipy.special import log_softmax
from support.points import arrays_of, gradient_at, hessian_at, value_at

from ctrlnet import (
    Activation,
    EvaluationError,
    FixedOpening,
    LeastSquares,
    PropagationError,
    Readout,
    Sample,
    SampleAverage,
    SoftmaxCrossEntropy,
    TrainingProblem,
    Work,
    identity,
)
from ctrlnet.objective import Objective
from ctrlnet.objective.problem import ObjectiveBlock

PIXELS = {"interval": (6,), "quadrilateral": (8, 6), "triangle": (8, 6), "hexahedron": (5, 4, 3)}
NAMES = ["s", "b", "W", "beta"]
CHOICES = {"s": [0], "b": [1], "W": [2], "beta": [3], "together": [0, 1, 2, 3]}
REGULARISATION = dict(control_size=0.02, control_roughness=0.03, weights_gradient=0.01, weights_size=0.04)
softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))


def sample_for(kind, images=5, classes=3):
    rng = np.random.default_rng(1)
    return Sample(rng.random((images, *PIXELS[kind])), rng.integers(0, classes, images), classes)


@pytest.fixture
def make_problem(make_network, normal_function):
    """Return a factory: kind -> (problem, point, direction), all controls random."""

    def factory(kind, images=5, loss=None, readout_space=None, regularisation=REGULARISATION, limit=2**31, **settings):
        network = make_network(kind, **({"opening": FixedOpening([1.0, -0.5])} | settings))
        space = None if readout_space is None else readout_space(network)
        problem = TrainingProblem(
            Readout(network, 3, space), sample_for(kind, images), loss, memory_limit=limit, **regularisation
        )
        rng = np.random.default_rng(2)
        point, direction = (
            [normal_function(c.function_space(), rng, a) for c, a in zip(problem.controls(), scales, strict=True)]
            for scales in ((0.3, 0.3, 0.5, 0.5), (0.1, 0.3, 1.0, 1.0))
        )
        return problem, point, direction

    return factory


def chosen_functional(problem, point, annotation, chosen):
    with annotation() as tape:
        return ReducedFunctional(problem.functional(point), [Control(point[k]) for k in chosen], tape=tape)


@pytest.mark.parametrize("which", CHOICES)
@pytest.mark.parametrize("kind", PIXELS)
def test_taylor(make_problem, annotation, assert_taylor, kind, which):
    """Gradient and Hessian of loss and regularisation with respect to each control and to all."""
    problem, point, direction = make_problem(kind)
    chosen = CHOICES[which]
    functional = chosen_functional(problem, point, annotation, chosen)
    assert_taylor(functional, [point[k] for k in chosen], [direction[k] for k in chosen])


@pytest.mark.parametrize("kind", PIXELS)
def test_taylor_of_the_reduced_functional(make_problem, assert_taylor, kind):
    problem, point, direction = make_problem(kind)
    assert_taylor(problem.reduced_functional(point), point, direction)


def coarse(network):
    """A readout space of two cells over the same rectangle."""
    high = network.space.mesh().coordinates.dat.data_ro.max(axis=0)
    return FunctionSpace(RectangleMesh(2, 1, *high, quadrilateral=True), "CG", 1)


@pytest.mark.parametrize(
    "settings",
    [
        dict(loss=LeastSquares()),
        dict(activation=softplus),
        dict(readout_space=coarse),
        dict(degree=1, control_cells=2, layers=5),
        dict(degree=0, control_cells=2, layers=5),
        dict(limit=0, layers=6, degree=1, control_cells=2),
        dict(images=70),
    ],
    ids=["least squares", "keeps its argument", "coarse readout", "linear controls", "shared controls",
         "recomputed", "several blocks"],
)
def test_taylor_of_variants(make_problem, assert_taylor, settings):
    problem, point, direction = make_problem("quadrilateral", **settings)
    assert_taylor(problem.reduced_functional(point), point, direction)


@pytest.mark.parametrize("kind", PIXELS)
def test_value_by_its_definition(make_problem, kind):
    """Mean cross-entropy of the scores plus the assembled forms of the regularisation."""
    problem, point, _ = make_problem(kind)
    s, b, W, beta = point
    scores = problem.average.scores(*problem.point(point))
    labels = problem.average.sample.labels
    loss = -log_softmax(scores, axis=0)[labels, np.arange(labels.size)].mean()
    controls, readout = problem.network.control_space, problem.readout
    forms = [controls.regularisation((s, b), 0.02, 0.03), *readout.regularisation((W, beta), 0.01, 0.04)]
    np.testing.assert_allclose(float(problem.average_loss(point)), loss, rtol=1e-13)
    np.testing.assert_allclose(float(problem.functional(point)), loss + sum(assemble(f) for f in forms), rtol=1e-13)


def test_control_scales_weigh_the_penalty(make_problem):
    scales = np.arange(1.0, 10.0)
    problem, point, _ = make_problem("quadrilateral", regularisation=dict(control_size=0.5, control_scales=scales))
    plain = TrainingProblem(problem.readout, problem.average.sample, control_size=0.5)
    (s, b, *_), controls = point, problem.network.control_space
    difference = float(problem.functional(point)) - float(plain.functional(point))
    expected = assemble(controls.regularisation((s, b), 0.5, scales=scales) - controls.regularisation((s, b), 0.5))
    np.testing.assert_allclose(difference, expected, rtol=1e-12)


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), LeastSquares()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", PIXELS)
def test_adjoint_tangent_dot_product(make_problem, kind, loss):
    """<J', d> by the adjoint and by the tangent to 1e-12; d'He = e'Hd."""
    problem, point, direction = make_problem(kind, loss=loss)
    block = ObjectiveBlock(Objective(problem.average, problem.regularisation), point)
    gradient = block.prepare_evaluate_adj(point, [1.0], None)
    for chosen in CHOICES.values():
        parts = [d if k in chosen else None for k, d in enumerate(direction)]
        left = block.evaluate_tlm_component(point, parts, None, 0)
        terms = [float(parts[k]._ad_dot(gradient[k])) for k in chosen]
        scale = sum(np.linalg.norm(gradient[k].dat.data_ro) * np.linalg.norm(direction[k].dat.data_ro) for k in chosen)
        assert abs(left - sum(terms)) <= 1e-12 * scale, f"tangent {left}, adjoint {sum(terms)}"
    functional = problem.reduced_functional(point)
    functional.derivative()
    other = [p._ad_mul(2.0) for p in point]
    products = [functional.hessian(d) for d in (direction, other)]
    left, right = (
        sum(float(u._ad_dot(h)) for u, h in zip(us, hs, strict=True))
        for us, hs in ((other, products[0]), (direction, products[1]))
    )
    np.testing.assert_allclose(left, right, rtol=1e-11, err_msg="a Hessian is symmetric")


def test_derivatives_are_cofunctions_of_the_dual_spaces(make_problem):
    problem, point, _ = make_problem("triangle")
    for derivative, control in zip(problem.reduced_functional(point).derivative(), point, strict=True):
        assert derivative.function_space() == control.function_space().dual()


def test_the_average_is_a_mean_over_images(make_problem, make_network):
    """Whatever the split: J and its gradient are the weighted means of those of two parts."""
    problem, point, _ = make_problem("triangle", images=41)
    sample, arrays = problem.average.sample, problem.point(point)
    value, gradient = value_at(problem.average, arrays), arrays_of(gradient_at(problem.average, arrays))
    parts = []
    for part in (slice(0, 7), slice(7, 41)):
        average = problem.on_sample(Sample(sample.images[part], sample.labels[part], 3))
        parts.append((len(average.sample) / 41, value_at(average, arrays), arrays_of(gradient_at(average, arrays))))
    np.testing.assert_allclose(sum(w * v for w, v, _ in parts), value, rtol=1e-13)
    for k, g in enumerate(gradient):
        np.testing.assert_allclose(sum(w * gs[k] for w, _, gs in parts), g, rtol=0, atol=1e-13 * np.abs(g).max())


@pytest.mark.parametrize("limit", [0, 20_000])
def test_recomputed_trajectories_give_the_same_gradient(make_problem, limit):
    """Less memory costs work, never accuracy."""
    found = []
    for memory in (2**31, limit):
        problem, point, direction = make_problem("quadrilateral", images=40, limit=memory, layers=6)
        functional = problem.reduced_functional(point)
        functional(point)
        gradient = [g.dat.data_ro.copy() for g in functional.derivative()]
        product = [h.dat.data_ro.copy() for h in functional.hessian(direction)]
        found.append((problem.average.keeps_trajectories, gradient + product))
    assert found[0][0] and not found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14 * np.abs(one).max())


def test_a_gradient_is_that_of_the_last_point(make_problem):
    """Trajectories kept at one point must not serve another."""
    problem, point, direction = make_problem("triangle")
    functional = problem.reduced_functional(point)
    first = [g.dat.data_ro.copy() for g in functional.derivative()]
    moved = [p._ad_add(d) for p, d in zip(point, direction, strict=True)]
    functional(moved)
    second = [g.dat.data_ro.copy() for g in functional.derivative()]
    assert max(np.abs(one - other).max() for one, other in zip(first, second, strict=True)) > 1e-3
    functional(point)
    for one, other in zip(first, functional.derivative(), strict=True):
        np.testing.assert_array_equal(one, other.dat.data_ro)
    # Only the classifier moves: the trajectories may stay, its part of the gradient may not.
    functional([*point[:2], *moved[2:]])
    third = [g.dat.data_ro.copy() for g in functional.derivative()]
    fresh = TrainingProblem(problem.readout, problem.average.sample, **REGULARISATION)
    expected = fresh.reduced_functional([*point[:2], *moved[2:]]).derivative()
    for one, other in zip(third, expected, strict=True):
        np.testing.assert_allclose(one, other.dat.data_ro, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("changed", [0, 1], ids=["s", "b"])
def test_derivatives_without_a_value_first(make_problem, changed):
    """Trajectories that were kept at another point serve no derivative."""
    problem, point, direction = make_problem("triangle")
    average = problem.average
    value_at(average, problem.point(point))
    moved = list(point)
    moved[changed] = point[changed]._ad_add(direction[changed])
    arrays, step = problem.point(moved), problem.point(direction)
    fresh = make_problem("triangle")[0].average
    for one, other in zip(*(arrays_of(gradient_at(a, arrays)) for a in (average, fresh)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)
    value_at(average, problem.point(point))
    for one, other in zip(*(arrays_of(hessian_at(a, arrays, step)) for a in (average, fresh)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)


def test_single_precision_is_double_to_its_rounding(make_problem):
    """Sums are in double: J and its gradient are off by the rounding of the states alone."""
    found = []
    for precision in ("double", "single"):
        problem, point, _ = make_problem("quadrilateral", images=20, precision=precision)
        functional = problem.reduced_functional(point)
        found.append((float(functional(point)), functional.derivative()))
    # eps times the terms of one stencil (9 neighbours x 2 features), for each of 3 layers.
    bound = 3 * 18 * np.finfo(np.float32).eps
    assert 0 < abs(found[0][0] - found[1][0]) < bound * abs(found[0][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        difference = np.linalg.norm(one.dat.data_ro - other.dat.data_ro)
        assert difference < bound * max(np.linalg.norm(one.dat.data_ro), 1.0) and other.dat.data_ro.dtype == float


def test_work_is_counted(make_problem):
    """A value is one forward sweep and the gradient after it one adjoint; a Hessian product recomputes neither."""
    problem, point, direction = make_problem("triangle")
    functional = problem.reduced_functional(point)
    size = (5, problem.network.operators.nodes, 3)
    kinds = ("forward", "adjoint", "tangent", "second_order")

    def spent(call):
        before = problem.work.copy()
        call()
        change = problem.work - before
        return [change.sweeps(kind, *size) for kind in kinds], change.units(*size)

    assert spent(lambda: functional(point)) == ([1, 0, 0, 0], 1)
    assert spent(functional.derivative) == ([0, 1, 0, 0], 2)
    # The second tangent is pyadjoint's own, for the functional's directional derivative.
    assert spent(lambda: functional.hessian(direction)) == ([0, 0, 2, 1], 9)
    shared = Work()
    TrainingProblem(problem.readout, problem.average.sample, work=shared).functional(point)
    assert shared.total == np.prod(size), "a counter can be shared between problems"


def test_the_callers_tape_is_left_alone(make_problem, annotation):
    problem, point, _ = make_problem("interval")
    outer = get_working_tape()
    functional = problem.reduced_functional(point)
    assert get_working_tape() is outer and not outer.get_blocks() and not annotate_tape()
    assert functional.tape is not outer
    with annotation() as tape:
        problem.reduced_functional(point)
        assert annotate_tape() and get_working_tape() is tape and not tape.get_blocks()
    problem.average_loss(point)
    assert not get_working_tape().get_blocks(), "without annotation nothing may be recorded"
    pause_annotation()


def test_the_loss_combines_with_a_regulariser_of_ones_own(make_problem, annotation, assert_taylor):
    """The average loss is a value on the tape like any other."""
    problem, point, direction = make_problem("triangle")
    with annotation() as tape:
        J = problem.average_loss(point)
        J = J * J + assemble(ufl.inner(point[2], point[2]) ** 2 * ufl.dx)
        functional = ReducedFunctional(J, [Control(c) for c in point], tape=tape)
    assert_taylor(functional, point, direction)


def test_accuracy(make_problem):
    problem, point, _ = make_problem("quadrilateral", images=30)
    sample = problem.average.sample
    predicted = problem.average.scores(*problem.point(point)).argmax(axis=0)
    assert problem.accuracy(sample, point) == pytest.approx((predicted == sample.labels).mean(), rel=1e-14)
    assert problem.accuracy(Sample(sample.images, predicted, 3), point) == 1.0


def test_random_controls_depend_on_the_generator_alone(make_problem):
    problem, _, _ = make_problem("quadrilateral")
    one, other = (problem.controls(np.random.default_rng(3), 0.2) for _ in range(2))
    np.testing.assert_array_equal(one[0].dat.data_ro, other[0].dat.data_ro)
    assert 0.1 < one[0].dat.data_ro.std() < 0.3
    assert not any(c.dat.data_ro.any() for c in (*one[1:], *problem.controls())), "all else starts from zero"


def test_an_overflow_is_a_typed_exception(make_problem):
    """An optimiser can catch it; the next evaluation is not spoilt."""
    problem, point, _ = make_problem("quadrilateral", activation=identity, layers=8)
    functional = problem.reduced_functional(point)
    expected = functional(point)
    gradient = [g.dat.data_ro.copy() for g in functional.derivative()]
    huge = [point[0]._ad_mul(1e200), *point[1:]]
    with pytest.raises(PropagationError, match=r"controls are too large for the explicit step h = 0\.075. Take more"):
        functional(huge)
    with pytest.raises(PropagationError, match="propagation is not finite"):
        problem.average.at(problem.point(huge).layers).features()
    assert functional(point) == expected
    for one, other in zip(gradient, functional.derivative(), strict=True):
        np.testing.assert_array_equal(one, other.dat.data_ro)


class TestBadInput:
    """Refused with what was received and what to do, before anything is computed."""

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            ((6,), r"pixel grid does not fit the mesh: received pixel_shape = \(6,\) on a mesh of dimension 2"),
            ((4, 4, 4), r"received pixel_shape = \(4, 4, 4\) on a mesh of dimension 2. Give one positive integer"),
        ],
    )
    def test_images_of_another_dimension(self, make_network, pixels, message):
        readout = Readout(make_network("triangle"), 3)
        with pytest.raises(ValueError, match=message):
            TrainingProblem(readout, Sample(np.zeros((2, *pixels)), np.zeros(2, int), 3))

    def test_another_number_of_classes(self, make_network):
        readout = Readout(make_network("triangle"), 4)
        with pytest.raises(ValueError, match="The sample has 3 classes or components, the readout 4; they"):
            SampleAverage(readout, sample_for("triangle"))

    def test_negative_memory(self, make_network):
        readout = Readout(make_network("triangle"), 3)
        with pytest.raises(ValueError, match="memory_limit must not be negative, received -1 bytes"):
            TrainingProblem(readout, sample_for("triangle"), memory_limit=-1)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            (dict(control_size=-1.0), "must not be negative, and finite; received size=-1.0"),
            (dict(control_size=float("nan")), "received size=nan"),
            (dict(control_roughness=-1.0), "must not be negative, and finite; received .*roughness=-1.0"),
            (dict(weights_gradient=-1.0), "must not be negative, and finite; received gradient=-1.0"),
            (dict(weights_gradient=float("inf")), "received gradient=inf"),
            (dict(weights_size=-1.0), "must not be negative, and finite; received .*size=-1.0"),
            (dict(weights_size=float("nan")), "received .*size=nan"),
            (dict(opening_size=float("nan")), "opening_size must not be negative, and finite; received nan"),
            (dict(control_scales=[1.0]), "scales must be 4 positive, finite numbers"),
            (dict(control_scales=[1.0, 1.0, 1.0, float("inf")]), "scales must be 4 positive, finite numbers"),
        ],
    )
    def test_wrong_regularisation(self, make_network, weights, message):
        readout = Readout(make_network("triangle"), 3)
        with pytest.raises(ValueError, match=message):
            TrainingProblem(readout, sample_for("triangle"), **weights)

    @pytest.mark.parametrize("loss", ["softmax", SoftmaxCrossEntropy, 3])
    def test_what_is_no_loss(self, make_network, loss):
        with pytest.raises(ValueError, match="A loss is SoftmaxCrossEntropy"):
            TrainingProblem(Readout(make_network("triangle"), 3), sample_for("triangle"), loss)

    @pytest.mark.parametrize("size", [None, "1", 1j])
    def test_what_is_no_number(self, make_network, size):
        for name in ("control_size", "weights_size", "opening_size"):
            with pytest.raises(ValueError, match="must not be negative, and finite; received"):
                TrainingProblem(Readout(make_network("triangle"), 3), sample_for("triangle"), **{name: size})

    def test_overflow(self, make_network):
        """Controls whose squares no number can hold give no objective, rather than one that is infinite."""
        problem = TrainingProblem(Readout(make_network("triangle"), 3), sample_for("triangle"))
        m = problem.controls()
        m.W.assign(1e200)
        with pytest.raises(EvaluationError, match="regularisation of W is not finite"):
            problem.reduced_functional(m)(list(m))
