"""The generated C of activations against NumPy and extended precision, value, slope and curvature."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import ufl
from firedrake import COMM_SELF, Constant, Function, FunctionSpace, UnitIntervalMesh
from scipy.special import expit

from ctrlnet import Activation, identity, relu, smoothed_relu, tanh
from ctrlnet.kernels.code.arrays import aligned_zeros
from ctrlnet.kernels.code.precision import DOUBLE, SINGLE
from ctrlnet.kernels.fused import sweep as fused_sweep
from ctrlnet.kernels.fused.codegen import KernelSpec, generate

ETA = 0.25
softsign = Activation("softsign", lambda z: z / (1 + abs(z)))
softplus = Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z)))


def smoothed(z):
    return np.where(z <= -ETA, 0, np.where(z < ETA, (z + ETA) ** 2 / (4 * ETA), z))


# Value, slope and curvature in NumPy.
EXACT = {
    "tanh": (tanh, np.tanh, lambda z: 1 - np.tanh(z) ** 2, lambda z: -2 * np.tanh(z) * (1 - np.tanh(z) ** 2)),
    "relu": (relu, lambda z: np.maximum(z, 0), lambda z: z > 0, np.zeros_like),
    "smoothed relu": (
        smoothed_relu(ETA), smoothed, lambda z: np.clip((z + ETA) / (2 * ETA), 0, 1),
        lambda z: (np.abs(z) < ETA) / (2 * ETA),
    ),
    "identity": (identity, lambda z: z, np.ones_like, np.zeros_like),
    "softsign": (
        softsign, lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2.0,
        lambda z: -2 * np.sign(z) * (1 + np.abs(z)) ** -3.0,
    ),
    "softplus": (
        softplus, lambda z: np.log1p(np.exp(z)), expit, lambda z: expit(z) * expit(-z),
    ),
    "powers": (
        Activation("powers", lambda z: z**3 - z**2 / 2), lambda z: z**3 - z**2 / 2, lambda z: 3 * z**2 - z,
        lambda z: 6 * z - 1,
    ),
    "sine": (Activation("sine", lambda z: ufl.sin(2 * z)), lambda z: np.sin(2 * z), lambda z: 2 * np.cos(2 * z),
             lambda z: -4 * np.sin(2 * z)),
    "bounded": (
        Activation("bounded", lambda z: ufl.max_value(ufl.min_value(z, 1), -1)), lambda z: np.clip(z, -1, 1),
        lambda z: np.abs(z) < 1, np.zeros_like,
    ),
}

_CHECK = "\n".join(
    f"void check_{name}(size_t n, const V *in, V *out) {{ for (size_t i = 0; i < n; i++) out[i] = {function}(in[i]); }}"
    for name, function in [("value", "activate"), ("slope", "slope"), ("curvature", "curvature"), ("exp", "v_exp"),
                           ("tanh", "v_tanh")]
)


@pytest.fixture
def compiled(monkeypatch):
    """Return a factory: (activation, single) -> functions of arrays by name, compiled as the sweeps are."""
    monkeypatch.setattr(fused_sweep, "generate", lambda spec: generate(spec) + _CHECK)

    def factory(activation=tanh, single=False):
        spec = KernelSpec(1, 1, 1, activation.c_text, activation.keeps_value, SINGLE if single else DOUBLE)
        library = fused_sweep.compile_kernels(spec, COMM_SELF)
        dtype = np.float32 if single else np.float64

        def call(name, z):
            size = -(-z.size // spec.precision.lanes) * spec.precision.lanes
            given, out = aligned_zeros((size,), dtype), aligned_zeros((size,), dtype)
            given[: z.size] = z
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (given, out)]
            getattr(library, f"check_{name}")(ctypes.c_size_t(size // spec.precision.lanes), *pointers)
            return out[: z.size].copy()

        return call

    return factory


def points():
    """Arguments on both sides of every kink, none on one."""
    return np.concatenate([np.linspace(-3.01, 2.97, 101), [1e-9, -1e-9, 20.0, -20.0]])


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("name", EXACT)
def test_generated_c(compiled, name, single):
    activation, value, slope, curvature = EXACT[name]
    call = compiled(activation, single)
    z = points()
    if single:
        z = z.astype(np.float32).astype(float)
    kept = call("value", z) if activation.keeps_value else z
    # A handful of operations, on numbers of this size: a few units of rounding of the largest.
    tolerance = 8 * np.finfo(np.float32 if single else float).eps
    for what, given, exact in (("value", z, value(z)), ("slope", kept, slope(z)), ("curvature", kept, curvature(z))):
        exact = np.asarray(exact, dtype=float)
        scale = np.maximum(1.0, np.abs(exact))
        error = (np.abs(call(what, given) - exact) / scale).max()
        assert error <= tolerance, f"{what} of {name} is off by {error / tolerance:.2g} times its rounding"


@pytest.mark.parametrize("name", EXACT)
def test_derivatives_by_differences(compiled, name):
    """Central differences of the C text are of second order: error <= h^2/6 |third derivative| + rounding / h."""
    activation = EXACT[name][0]
    call = compiled(activation)
    z, h = points()[:101], 1e-5
    kink = {"relu": 0.0, "smoothed relu": ETA, "bounded": 1.0}.get(name)
    if kink is not None:
        z = z[np.abs(np.abs(z) - kink) > 2 * h]

    def kept(x):
        return call("value", x) if activation.keeps_value else x

    for upper, lower in (("value", "slope"), ("slope", "curvature")):
        first, second = ((x if upper == "value" else kept(x)) for x in (z + h, z - h))
        difference = (call(upper, first) - call(upper, second)) / (2 * h)
        np.testing.assert_allclose(call(lower, kept(z)), difference, atol=2e-8, rtol=1e-8)


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
@pytest.mark.parametrize("name", [n for n in EXACT if n != "bounded"])
def test_nan_passes_through(compiled, name, single):
    """An overflow upstream must reach the loss, where it is detected; zero in its place would hide it."""
    values = compiled(EXACT[name][0], single)("value", np.array([0.5, np.nan, -0.5]))
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])


def units_in_the_last_place(values, exact):
    """Errors in units of eps/2 |exact|, at most one unit in the last place; exact zeros must be met."""
    assert (values[exact == 0] == 0).all()
    unit = np.finfo(values.dtype).eps / 2 * np.where(exact == 0, 1, np.abs(exact))
    return np.abs(values.astype(np.longdouble) - exact) / unit


@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_accuracy_of_tanh_and_exp(compiled, single):
    """A few units in the last place, whatever the size of the argument."""
    call = compiled(tanh, single)
    dtype = np.float32 if single else np.float64
    smallest, largest = (1e-37, 3e38) if single else (1e-300, 1.7e308)
    rng = np.random.default_rng(5)
    z = np.concatenate([
        np.geomspace(smallest, largest, 4000), rng.uniform(0, 1, 4000), rng.uniform(0, 25, 4000), [0.0],
    ]).astype(dtype)
    z = np.concatenate([z, -z])
    error = units_in_the_last_place(call("tanh", z), np.tanh(z.astype(np.longdouble)))
    assert error.max() < 6, f"tanh({z[error.argmax()]!r}) is off by {error.max():.2f} ulp"
    assert (np.abs(call("tanh", z)) <= 1).all(), "|tanh| <= 1, or 1 - tanh^2 would turn negative"
    bound = 86.9 if single else 707.9
    z = np.concatenate([np.linspace(-bound, bound, 8001), [0.0, smallest, -smallest], rng.uniform(-1, 1, 2000)])
    z = z.astype(dtype)
    error = units_in_the_last_place(call("exp", z), np.exp(z.astype(np.longdouble)))
    assert error.max() < 6, f"exp({z[error.argmax()]!r}) is off by {error.max():.2f} ulp"


def test_infinite_arguments(compiled):
    call = compiled()
    np.testing.assert_array_equal(call("tanh", np.array([np.inf, -np.inf])), [1.0, -1.0])
    large = call("exp", np.array([np.inf, 1e4, -np.inf, -1e4]))
    assert np.isfinite(large).all() and (large[:2] > 1e307).all() and (large[2:] < 1e-307).all()


def test_the_same_callable_serves_firedrake():
    """The plain route interpolates the UFL expression; its values are those of NumPy."""
    V = FunctionSpace(UnitIntervalMesh(20), "CG", 1)
    z = Function(V)
    z.dat.data[:] = np.linspace(-2.03, 1.97, 21)
    for activation, value, _, _ in EXACT.values():
        result = Function(V).interpolate(activation(z)).dat.data_ro
        np.testing.assert_allclose(result, value(z.dat.data_ro), rtol=1e-13, atol=1e-15, err_msg=activation.name)


def test_constants_print_their_value():
    scaled = Activation("scaled", lambda z: Constant(2.5) * z)
    assert "2.5" in scaled.c_text[0] and "2.5" in scaled.c_text[1] and scaled.c_text[2] == "SPLAT(0.0)"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (lambda z: ufl.bessel_J(1, z), "uses BesselJ, which has no SIMD counterpart"),
        (lambda z: ufl.acos(z), "uses Acos, which has no SIMD counterpart"),
        (lambda z: ufl.conditional(ufl.And(z > 0, z < 1), z, 0), "uses AndCondition.*Write it with"),
        (lambda z: ufl.as_vector([z, z]), r"'mine' has shape \(2,\); it must map a scalar to a scalar"),
    ],
)
def test_unsupported_expressions_fail_when_the_activation_is_made(expression, message):
    with pytest.raises(ValueError, match=message):
        Activation("mine", expression)


def test_bad_parameters():
    with pytest.raises(ValueError, match=r"eta of smoothed_relu must be positive and finite, received 0\.0; use relu"):
        smoothed_relu(0.0)
    with pytest.raises(ValueError, match="received nan"):
        smoothed_relu(float("nan"))
    with pytest.raises(ValueError, match="'half' keeps its value but does not state value_c, slope_c and curvature_c"):
        Activation("half", ufl.tanh, value_c="v_tanh(z)", keeps_value=True)
