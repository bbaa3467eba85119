"""Controls as functions of time: sampling and its transpose, depth prolongation, regularisation, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_WORLD, PointEvaluator, SpatialCoordinate, as_vector, assemble, cos, derivative, dx, exp, sin
from firedrake.adjoint import Control, ReducedFunctional

from ctrlnet import ControlSpace

T = 1.5
J, C = 2, 2


def control_space(cells=3, degree=0, refinements=2):
    return ControlSpace(T, cells, J, C, degree, refinements)


def sampled(controls, times, m):
    """The coefficients, biases and parameters at some times."""
    return controls.sampled(controls.sampling(times), controls.control_set.arrays(m))


def in_time(controls):
    """Set (s, b) to functions of time, component by component."""
    (t,) = SpatialCoordinate(controls.mesh)
    s, b = controls.zero()
    s.interpolate(as_vector([sin((k + 1) * t) for k in range(J * C * C)]))
    b.interpolate(as_vector([cos(t), t**2]))
    return s, b


def test_a_value_of_s_is_indexed_operator_out_in():
    controls = control_space()
    s, b = controls.zero()
    s.dat.data[:] = np.arange(J * C * C)
    layers = sampled(controls, [0.0, 1.0], (s, b))[0]
    assert layers.shape == (2, J, C, C)
    np.testing.assert_array_equal(layers[1], np.arange(J * C * C).reshape(J, C, C))
    assert sampled(controls, [0.0], (s, b))[1].shape == (1, C)


def test_piecewise_constant_controls_take_the_value_of_their_cell():
    """A value at a jump is the one that follows; that at T is the last one."""
    controls = control_space(3)
    s, b = controls.zero()
    b.interpolate(as_vector([SpatialCoordinate(controls.mesh)[0]] * 2))
    times = np.array([0.0, 0.2, 0.5, 0.9, 1.0, 1.2, T])
    np.testing.assert_allclose(
        sampled(controls, times, (s, b))[1][:, 0], [0.25, 0.25, 0.75, 0.75, 1.25, 1.25, 1.25], rtol=1e-14
    )


def test_linear_controls_are_interpolated():
    controls = control_space(3, degree=1)
    s, b = controls.zero()
    (t,) = SpatialCoordinate(controls.mesh)
    b.interpolate(as_vector([2 - 3 * t, t]))
    times = np.array([0.0, 0.2, 0.5, 0.77, 1.0, T])
    np.testing.assert_allclose(
        sampled(controls, times, (s, b))[1], np.stack([2 - 3 * times, times], axis=1), atol=1e-14
    )


@pytest.mark.parametrize("degree", [0, 1])
def test_sampling_agrees_with_evaluation(degree):
    """E is the space's own evaluation at points inside the cells."""
    controls = control_space(5, degree)
    s, b = in_time(controls)
    times = np.array([0.1, 0.4, 0.8, 1.1, 1.4])
    expected = PointEvaluator(controls.mesh, times[:, None]).evaluate(s)
    np.testing.assert_allclose(sampled(controls, times, (s, b))[0].reshape(5, -1), expected, atol=1e-13)


@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_derivatives_are_the_transposed_sampling(degree, steps):
    """<E^T g, u> = <g, E u> for any number of steps, more or fewer than cells."""
    controls = control_space(3, degree)
    sampling = controls.sampling(T / steps * np.arange(steps))
    assert np.allclose(sampling.sum(axis=1), 1.0), "a constant control is sampled as that constant"
    rng = np.random.default_rng(3)
    gS, gb = rng.standard_normal((steps, J, C, C)), rng.standard_normal((steps, C))
    m = in_time(controls)
    duals = controls.control_set.cofunctions(controls.sampled_adjoint(sampling, gS, gb, np.zeros((steps, 0))))
    values = controls.sampled(sampling, controls.control_set.arrays(m))
    for u, g, dual, value in zip(m, (gS, gb), duals, values[:2], strict=True):
        assert dual.function_space() == u.function_space().dual()
        np.testing.assert_allclose(dual.dat.data_ro.ravel() @ u.dat.data_ro.ravel(), (g * value).sum(), rtol=1e-13)


@pytest.mark.parametrize("degree", [0, 1])
def test_prolonged_controls_are_the_same_functions_of_time(degree):
    """Twice over: at every time, also with more steps than cells; adding layers changes nothing."""
    coarse = control_space(3, degree)
    s, b = in_time(coarse)
    fine, (fine_s, fine_b) = coarse, (s, b)
    times = np.linspace(0, T, 50, endpoint=False)
    for cells in (6, 12):
        finer = fine.finer()
        fine_s, fine_b = fine.prolong((fine_s, fine_b), finer)
        fine = finer
        assert fine.cells == cells and fine_s.function_space() == fine.s_space
        for u, v in zip(sampled(fine, times, (fine_s, fine_b)), sampled(coarse, times, (s, b)), strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-13)


def test_random_controls_run_along_time():
    """The same draw for any numbering: the k-th number of the generator belongs to the k-th time."""
    controls = control_space(4)
    s, b = controls.random(np.random.default_rng(6), 0.1)
    drawn = 0.1 * np.random.default_rng(6).standard_normal((4, J * C * C))
    times = T / 4 * np.arange(4)
    np.testing.assert_array_equal(sampled(controls, times, (s, b))[0].reshape(4, -1), drawn)
    assert not b.dat.data_ro.any()


def test_regularisation_of_linear_controls_is_the_exact_integral():
    """s = t in every component, b = 1 - 2t: int_0^T t^2 = T^3/3, int (1 - 2t)^2, and slopes 1 and -2."""
    controls = control_space(3, degree=1)
    (t,) = SpatialCoordinate(controls.mesh)
    s, b = controls.zero()
    s.interpolate(as_vector([t] * (J * C * C)))
    b.interpolate(as_vector([1 - 2 * t] * C))
    size = J * C * C * T**3 / 3 + C * (T - 2 * T**2 + 4 * T**3 / 3)
    roughness = J * C * C * T + C * 4 * T
    for alpha, gamma in ((0.3, 0.0), (0.0, 0.7), (0.3, 0.7)):
        value = assemble(controls.regularisation((s, b), alpha, gamma))
        np.testing.assert_allclose(value, alpha / 2 * size + gamma / 2 * roughness, rtol=1e-13)


def test_regularisation_of_piecewise_constant_controls_counts_jumps():
    """alpha/2 sum |s_k|^2 dt + gamma/2 sum |s_{k+1} - s_k|^2 / dt."""
    cells = 4
    controls = control_space(cells)
    rng = np.random.default_rng(7)
    values = [rng.standard_normal((cells, n)) for n in (J * C * C, C)]
    s, b = controls.zero()
    sampling = controls.sampling(T / cells * np.arange(cells))
    for u, v in zip((s, b), values, strict=True):
        u.dat.data[:] = (sampling.T @ v).reshape(u.dat.data_ro.shape)
    dt = T / cells
    size = sum((v**2).sum() * dt for v in values)
    jumps = sum((np.diff(v, axis=0) ** 2).sum() / dt for v in values)
    value = assemble(controls.regularisation((s, b), 0.3, 0.7))
    np.testing.assert_allclose(value, 0.15 * size + 0.35 * jumps, rtol=1e-13)


def test_the_jump_term_is_the_slope_of_smooth_controls():
    """Refined in depth, piecewise constant controls converge to int |ds/dt|^2, half a cell short at each end."""
    exact = 0.5 * (2 * T + np.sin(4 * T) / 2)
    errors = []
    for cells in (8, 16, 32):
        controls = ControlSpace(T, cells, 1, 1)
        s, b = controls.zero()
        s.interpolate(as_vector([sin(2 * SpatialCoordinate(controls.mesh)[0])]))
        errors.append(abs(assemble(controls.regularisation((s, b), 0.0, 1.0)) - exact))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[0] < 0.3 * exact and orders.min() > 0.95, f"first order in the cells: errors {errors} of {exact}"


def test_scales_weigh_each_operator():
    controls = control_space(2)
    s, b = controls.zero()
    s.dat.data[:] = 1.0
    expected = 0.5 * T * C * C * (3.0**2 + 0.5**2)
    np.testing.assert_allclose(assemble(controls.regularisation((s, b), 1.0, scales=[3.0, 0.5])), expected, rtol=1e-13)


def test_one_cell_has_no_jump():
    controls = control_space(1)
    s, b = controls.random(np.random.default_rng(0))
    assert assemble(controls.regularisation((s, b), 0.0, 1.0)) == 0.0


@pytest.mark.parametrize("degree", [0, 1])
def test_regularisation_is_taped_by_pyadjoint(annotation, assert_taylor, normal_function, degree):
    controls = control_space(3, degree)
    rng = np.random.default_rng(8)
    start, direction = ([normal_function(V, rng) for V in (controls.s_space, controls.b_space)] for _ in range(2))
    with annotation() as tape:
        form = controls.regularisation(start, 0.3, 0.7)
        # A quadratic alone has no third-order remainder to measure.
        J = assemble(form) + assemble(exp(start[0][0]) * dx(degree=4))
        functional = ReducedFunctional(J, [Control(u) for u in start], tape=tape)
    assert_taylor(functional, start, direction)
    quadratic = assemble(derivative(form, start[0], start[0]))
    quadratic += assemble(derivative(form, start[1], start[1]))
    np.testing.assert_allclose(quadratic, 2 * assemble(form), rtol=1e-12, err_msg="R is quadratic: R'(u) u = 2 R(u)")


@pytest.mark.parametrize("degree", [0, 1])
def test_regularisation_matrix_is_the_form_of_one_component(degree):
    controls = control_space(4, degree)
    _, b = in_time(controls)
    matrix = controls.regularisation_matrix(0.3, 0.7)
    values = b.dat.data_ro
    expected = 0.5 * np.einsum("tc,tu,uc->", values, matrix, values)
    np.testing.assert_allclose(assemble(controls.regularisation((controls.zero().s, b), 0.3, 0.7)), expected)


@pytest.mark.parallel(nprocs=2)
def test_each_rank_has_its_own_copy():
    """Time meshes are on COMM_SELF; a draw is the same on every rank."""
    controls = control_space()
    assert controls.mesh.comm.size == 1 and controls.s_space.dim() == 3 * J * C * C
    mine = sampled(controls, [0.0, 1.0], controls.random(np.random.default_rng(9)))[0]
    for values in COMM_WORLD.allgather(mine):
        np.testing.assert_array_equal(values, mine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(T=0.0), r"final time T must be positive and finite, received 0\.0"),
        (dict(T=None), "final time T must be positive and finite, received None"),
        (dict(T="1"), "final time T must be positive and finite, received '1'"),
        (dict(T=-1.0), r"final time T must be positive and finite, received -1\.0"),
        (dict(T=float("nan")), "final time T must be positive and finite, received nan"),
        (dict(T=float("inf")), "final time T must be positive and finite, received inf"),
        (dict(cells=0), "at least one of cells, received 0"),
        (dict(operators=0), "at least one of operators, received 0"),
        (dict(operators=[]), "at least one of operators, received 0"),
        (dict(features=0), "at least one of features, received 0"),
        (dict(degree=2), r"degree must be 0 \(piecewise constant\) or 1 \(continuous linear\), received 2"),
        (dict(refinements=-1), "refinements must not be negative, received -1"),
    ],
)
def test_bad_control_spaces_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ControlSpace(**(dict(T=1.0, cells=2, operators=2, features=2) | arguments))


def test_the_hierarchy_ends():
    controls = control_space(2, refinements=1)
    with pytest.raises(ValueError, match=r"ends at 4 cells. Build the ControlSpace with refinements=2 or more"):
        controls.finer().finer()


@pytest.mark.parametrize("weights", [(-1.0, 0.0), (0.0, -1e-9)])
def test_negative_weights_are_refused(weights):
    controls = control_space()
    with pytest.raises(ValueError, match="weights must not be negative, and finite; received size="):
        controls.regularisation(controls.zero(), *weights)


@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.0], [1.0, -2.0], [[1.0, 1.0]]])
def test_bad_scales_are_refused(scales):
    controls = control_space()
    with pytest.raises(ValueError, match="scales must be 2 positive, finite numbers, one an operator; received"):
        controls.regularisation(controls.zero(), 1.0, scales=scales)
