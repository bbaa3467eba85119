"""The fused sweeps against dense matrices, their derivatives, precision, and the cache of compiled kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ufl
from firedrake import COMM_SELF, FunctionSpace, Mesh
from petsc4py import PETSc
from scipy.special import expit

from ctrlnet import Activation, identity, low_order_operators, relu, smoothed_relu, stencil_operators, tanh
from ctrlnet.kernels.code.compile import KernelCompilationError
from ctrlnet.kernels.fused import sweep as fused_sweep
from ctrlnet.kernels.fused.sweep import FusedSweep
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.operators.stencil_table import StencilTable

ETA = 0.2
ACTIVATIONS = {
    "tanh": (tanh, np.tanh),
    "relu": (relu, lambda z: np.maximum(z, 0)),
    "smoothed relu": (
        smoothed_relu(ETA), lambda z: np.where(z <= -ETA, 0, np.where(z < ETA, (z + ETA) ** 2 / (4 * ETA), z))
    ),
    "identity": (identity, lambda z: z),
    "softsign": (Activation("softsign", lambda z: z / (1 + abs(z))), lambda z: z / (1 + np.abs(z))),
    "softplus": (
        Activation("softplus", lambda z: ufl.ln(1 + ufl.exp(z))), lambda z: -np.log(expit(-z))
    ),
}
CELLS = ["interval", "quadrilateral", "triangle", "hexahedron", "tetrahedron"]
LAYERS = 3
# Every block size of the generated code: below, at and above one register block, divisible or not.
FEATURES = [1, 2, 3, 4, 5, 6, 8, 9, 16]


controls_of = LayerControls.without_parameters


class Setting:
    """Operators of one mesh with random coefficients, moderate in size: |h K| is about 1."""

    def __init__(self, operators, features=2, activation=tanh, precision="double", seed=1):
        self.table = operators.table
        self.sweep = FusedSweep(self.table, features, activation, precision)
        self.images = self.sweep.image_block
        self.dense = self.table.forward.dense(self.table.nodes)
        self.rng = np.random.default_rng(seed)
        self.shapes = ((LAYERS, len(operators), features, features), (LAYERS, features),
                       (self.table.owned, features, self.images))
        self.h = np.array([0.3, 0.2, 0.25])
        norms = np.abs(self.dense).sum(axis=2).max(axis=1)
        self.scale = (1 / (norms * len(operators) * features))[None, :, None, None]
        self.S, self.b, self.Y0 = self.draw()

    def draw(self):
        """Return a random (S, b, Y0)."""
        S, b, Y0 = (self.rng.standard_normal(shape) for shape in self.shapes)
        return 3 * S * self.scale, 0.3 * b, Y0

    def reference(self, sigma):
        """The network with dense matrices and NumPy."""
        Y = self.Y0
        for S, b, h in zip(self.S, self.b, self.h, strict=True):
            Z = np.einsum("joc,jnm,mci->noi", S, self.dense, Y, optimize=True) + b[:, None]
            Y = Y + h * sigma(Z)
        return Y

    def forward(self, S, b, Y0, keep=True):
        trajectory = self.sweep.trajectory(LAYERS, self.images, keep)
        trajectory.initial[:] = Y0
        return self.sweep.forward(controls_of(S, b), self.h, trajectory).astype(float), trajectory

    def adjoint(self, S, b, Y0, weight):
        """Derivative of <weight, Y_N>."""
        _, trajectory = self.forward(S, b, Y0)
        lam = self.sweep.field(self.images)
        lam[:] = weight
        out = self.sweep.adjoint(controls_of(S, b), self.h, trajectory, lam)
        return out.coefficients, out.biases, lam.astype(float)

    def tangent(self, direction):
        _, trajectory = self.forward(self.S, self.b, self.Y0)
        dS, db, dY0 = direction
        tangent = self.sweep.trajectory(LAYERS, self.images)
        tangent.initial[:] = dY0
        change = self.sweep.tangent(controls_of(self.S, self.b), controls_of(dS, db), self.h, trajectory, tangent)
        return change.astype(float), trajectory, tangent

    def second_order(self, direction, weight):
        """Hessian of <weight, Y_N> times a direction of (S, b, Y0)."""
        _, trajectory, tangent = self.tangent(direction)
        lam, dlam = self.sweep.field(self.images), self.sweep.field(self.images)
        lam[:] = weight
        out = self.sweep.second_order(
            controls_of(self.S, self.b), controls_of(*direction[:2]), self.h, trajectory, tangent, lam, dlam)
        return out.coefficients, out.biases, dlam.astype(float)


@pytest.fixture(scope="module")
def operators_on(space):
    """Return operators of a small mesh by its cell type, assembled once."""
    known = {}

    def of(kind, build=low_order_operators):
        if (kind, build) not in known:
            known[kind, build] = build(space(kind, 2, 0.5, COMM_SELF))
        return known[kind, build]

    return of


def dot(a, b):
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def size(*arrays):
    return np.sqrt(sum(float((a**2).sum()) for a in arrays))


@pytest.mark.parametrize("features", FEATURES)
def test_forward_is_the_network_with_dense_matrices(operators_on, features):
    case = Setting(operators_on("quadrilateral", stencil_operators), features)
    expected = case.reference(np.tanh)
    for keep in (True, False):
        result, _ = case.forward(case.S, case.b, case.Y0, keep)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("features", FEATURES)
def test_adjoint_tangent_dot_product_for_any_feature_count(operators_on, features):
    _dot_products(Setting(operators_on("quadrilateral", stencil_operators), features))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_on_every_cell(operators_on, name, kind):
    activation, sigma = ACTIVATIONS[name]
    case = Setting(operators_on(kind), activation=activation)
    expected = case.reference(sigma)
    result, _ = case.forward(case.S, case.b, case.Y0)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    _dot_products(case)


def _dot_products(case):
    """<w, F' d> = <F'^* w, d> to round-off, together and for S, b and Y0 one by one; H is symmetric."""
    weight = case.rng.standard_normal(case.shapes[2])
    gradient = case.adjoint(case.S, case.b, case.Y0, weight)
    direction = case.draw()
    zeros = [np.zeros(shape) for shape in case.shapes]
    for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)):
        chosen = list(zeros)
        chosen[part] = direction[part]
        change, _, _ = case.tangent(chosen)
        left, right = dot([weight], [change]), dot(gradient, chosen)
        scale = size(weight) * size(change)
        assert abs(left - right) <= 1e-12 * scale, f"<w, F'd> = {left} but <F'*w, d> = {right}"
    other = case.draw()
    left = dot(case.second_order(direction, weight), other)
    right = dot(case.second_order(other, weight), direction)
    scale = size(*case.second_order(direction, weight)) * size(*other) + 1e-300
    assert abs(left - right) <= 1e-12 * scale, f"a Hessian is symmetric: {left} against {right}"


@pytest.mark.parametrize("kind", ["quadrilateral", "triangle", "hexahedron"])
@pytest.mark.parametrize("name", ["tanh", "softplus", "identity"])
@pytest.mark.parametrize("features", [2, 9])
def test_second_order_against_differences_of_the_gradient(operators_on, name, kind, features):
    """(g(m + e d) - g(m - e d)) / 2e = H d + O(e^2)."""
    case = Setting(operators_on(kind), features, ACTIVATIONS[name][0])
    weight, direction = case.rng.standard_normal(case.shapes[2]), case.draw()
    step = 1e-4
    ahead, behind = (
        case.adjoint(*(m + e * d for m, d in zip((case.S, case.b, case.Y0), direction, strict=True)), weight)
        for e in (step, -step)
    )
    for product, plus, minus in zip(case.second_order(direction, weight), ahead, behind, strict=True):
        difference = (plus - minus) / (2 * step)
        assert size(product - difference) <= 1e-6 * max(size(product), 1.0)


@pytest.mark.parametrize("features", [1, 4, 9])
@pytest.mark.parametrize("kind", ["quadrilateral", "tetrahedron"])
def test_single_precision_is_double_to_its_rounding(operators_on, kind, features):
    """Errors stay below (terms of a sum + a few) x layers x eps of float32: a bound, not a fit."""
    double = Setting(operators_on(kind), features)
    single = Setting(operators_on(kind), features, precision="single")
    single.S, single.b = double.S, double.b
    double.Y0 = double.Y0[:, :, :1] * np.ones(double.images)
    single.Y0 = double.Y0[:, :, :1] * np.ones(single.images)
    terms = features * max(double.table.forward.widest_row, double.table.transposed.widest_row) + 8
    bound = terms * LAYERS * np.finfo(np.float32).eps
    exact = double.forward(double.S, double.b, double.Y0)[0][:, :, 0]
    result = single.forward(single.S, single.b, single.Y0)[0]
    assert single.sweep.dtype == np.float32 and single.forward(*single.draw())[1].states.dtype == np.float32
    assert np.abs(result - exact[:, :, None]).max() <= bound * np.abs(exact).max()
    assert np.abs(result - exact[:, :, None]).max() > 0.1 * np.finfo(np.float32).eps, "states are in single precision"
    weight = double.rng.standard_normal((*double.shapes[2][:2], 1))
    exact = double.adjoint(double.S, double.b, double.Y0, weight)
    result = single.adjoint(single.S, single.b, single.Y0, weight)
    for g32, g64, images in zip(result, exact, (True, True, False), strict=True):
        # All images are equal, so sums over them differ by their number.
        g32, g64 = (g32 / single.images, g64 / double.images) if images else (g32[..., :1], g64[..., :1])
        assert g32.dtype == float
        assert size(g32 - g64) <= bound * terms * size(g64)


def test_padding_images_do_no_harm(operators_on):
    """Images whose adjoint is zero add nothing to the gradient."""
    case = Setting(operators_on("triangle"))
    weight = case.rng.standard_normal(case.shapes[2])
    weight[:, :, 5:] = 0.0
    changed = case.Y0.copy()
    changed[:, :, 5:] = 0.0
    for one, other in zip(case.adjoint(case.S, case.b, case.Y0, weight), case.adjoint(case.S, case.b, changed, weight),
                          strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


def test_a_nan_reaches_the_final_state(operators_on):
    case = Setting(operators_on("quadrilateral"), activation=relu)
    case.Y0[4, 0, 3] = np.nan
    result, _ = case.forward(case.S, case.b, case.Y0)
    reached = np.isnan(result).any(axis=(0, 1))
    assert reached[3] and reached.sum() == 1, "a NaN must spread within its own image and to no other"


@pytest.mark.parametrize("kind", CELLS)
def test_transposed_pattern_is_the_transpose(operators_on, kind):
    table = operators_on(kind).table
    forward, transposed = table.forward.dense(table.nodes), table.transposed.dense(table.nodes)
    # Rows that differ by round-off are stored once, in each direction on its own.
    np.testing.assert_allclose(transposed, forward.transpose(0, 2, 1), rtol=0, atol=1e-14 * np.abs(forward).max())
    for pattern in (table.forward, table.transposed):
        assert sorted(pattern.order) == list(range(pattern.rows))
        assert pattern.widest_row == max(pattern.row(i)[0].size for i in range(pattern.rows))


@pytest.mark.parametrize(
    ("kind", "classes"), [("interval", 3), ("quadrilateral", 9), ("hexahedron", 27)]
)
def test_few_row_classes_on_uniform_meshes(space, kind, classes):
    """Interior, faces, edges, corners: 3^dim kinds of rows, whatever the size of the mesh."""
    for cells in (4, 6):
        table = stencil_operators(space(kind, cells, 1 / 3)).table
        assert table.forward.classes == classes
        # The transpose also sees the boundary from the layer of nodes next to it.
        assert table.transposed.classes <= (5 if kind == "interval" else 5 ** (classes // 9 + 1))
        order = table.forward.row_class[table.forward.order]
        assert (np.diff(order) >= 0).all(), "few classes: rows are visited class by class"


def test_an_unstructured_mesh_has_many_classes():
    mesh = Mesh(str(Path(__file__).parents[2] / "meshes" / "square.msh"), comm=COMM_SELF)
    operators = low_order_operators(FunctionSpace(mesh, "CG", 1))
    pattern = operators.table.forward
    assert pattern.classes > 0.5 * pattern.rows
    # Then nodes are visited in their own order, which is local in memory.
    np.testing.assert_array_equal(pattern.order, np.arange(pattern.rows))
    _dot_products(Setting(operators))


def test_rows_without_entries():
    """An operator that is zero somewhere, and one that is zero everywhere, are operators too."""
    matrices = []
    for values in ([1.0, 0.0, 2.0], [0.0, 0.0, 0.0]):
        matrix = PETSc.Mat().createAIJ(3, nnz=1, comm=COMM_SELF)
        for i, value in enumerate(values):
            matrix.setValue(i, i, value)
        matrix.assemble()
        matrices.append(matrix)
    table = StencilTable(matrices)
    np.testing.assert_array_equal(table.forward.dense(3), [np.diag([1.0, 0.0, 2.0]), np.zeros((3, 3))])
    sweep = FusedSweep(table, 1, identity)
    trajectory = sweep.trajectory(1, sweep.image_block)
    trajectory.initial[:] = 1.0
    final = sweep.forward(controls_of(np.ones((1, 2, 1, 1)), np.ones((1, 1))), np.ones(1), trajectory)
    np.testing.assert_array_equal(final[:, 0, 0], [3.0, 2.0, 4.0])


def test_bad_input(operators_on):
    table = operators_on("interval").table
    with pytest.raises(ValueError, match="precision must be 'double' or 'single', received 'half'"):
        FusedSweep(table, 2, tanh, "half")
    sweep = FusedSweep(table, 2, tanh)
    with pytest.raises(ValueError, match=f"multiple of {sweep.image_block} images, received 3"):
        sweep.trajectory(2, 3)


def test_a_compiler_failure_names_its_log(operators_on, monkeypatch):
    monkeypatch.setattr(fused_sweep, "generate", lambda spec: "this is not C;")
    with pytest.raises(KernelCompilationError, match="make doctor") as failure:
        FusedSweep(operators_on("interval").table, 3, tanh)
    logs = [Path(word) for word in str(failure.value).split() if word.endswith((".log", ".err"))]
    assert logs and all(log.is_file() for log in logs), f"no log in: {failure.value}"
    assert any("error" in log.read_text() for log in logs)


# Builds one kernel from a PETSc matrix alone, so that nothing else is compiled.
SCRIPT = """
from firedrake import COMM_WORLD
from petsc4py import PETSc
from ctrlnet.dynamics.activations import tanh
from ctrlnet.kernels.fused.sweep import FusedSweep
from ctrlnet.operators.stencil_table import StencilTable
matrix = PETSc.Mat().createAIJ(12, nnz=1, comm=COMM_WORLD)
for i in range(*matrix.getOwnershipRange()):
    matrix.setValue(i, i, 1.0)
matrix.assemble()
sweep = FusedSweep(StencilTable([matrix]), 7, tanh)
assert sweep.image_block == 16
print("built")
"""


def build(cache, ranks=1):
    """Run the script in new processes; return the shared libraries in the cache with their time stamps."""
    command = [sys.executable, "-c", SCRIPT]
    if ranks > 1:
        command = [shutil.which("mpiexec"), "-n", str(ranks), *command]
    # A process that has initialised MPI leaves marks that would make mpiexec take itself for a part of it.
    marks = ("PMIX_", "OMPI_COMM_WORLD_", "OMPI_MCA_orte_", "OMPI_MCA_ess", "OMPI_MCA_pmix", "OMPI_UNIVERSE_SIZE",
             "PETSC_OPTIONS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(marks)}
    done = subprocess.run(
        command, env=environment | {"PYOP2_CACHE_DIR": str(cache)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("built") == ranks, done.stdout
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.so")}


@pytest.mark.parametrize("ranks", [1, 2])
def test_kernels_are_compiled_once_and_found_by_a_second_process(tmp_path, ranks):
    """One library whatever the number of ranks; later processes, on one or more ranks, leave it untouched."""
    first = build(tmp_path, ranks)
    assert len(first) == 1
    assert build(tmp_path) == first
    assert build(tmp_path, 2) == first
