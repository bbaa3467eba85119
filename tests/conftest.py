"""Fixtures of all tests: a fresh tape, and small meshes and networks of every cell type."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from firedrake import (
    COMM_WORLD,
    BoxMesh,
    ExtrudedMesh,
    Function,
    FunctionSpace,
    IntervalMesh,
    MeshHierarchy,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
)
from pyadjoint import (
    Tape,
    annotate_tape,
    get_working_tape,
    pause_annotation,
    set_working_tape,
    taylor_to_dict,
)

from ctrlnet import Controls, ControlSpace, Network, Residual, low_order_operators, stencil_operators, tanh
from ctrlnet.operators import sphere_hierarchy
from ctrlnet.own_tape import own_tape

# Whatever starts several ranks does so through the launcher that does not wait for ever.
os.environ["PATH"] = os.pathsep.join([str(Path(__file__).parent / "launcher"), os.environ.get("PATH", os.defpath)])
# Ranks that wait leave their core to others: there are more of them than cores.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def on_several_ranks(item: pytest.Item) -> bool:
    return item.get_closest_marker("parallel") is not None and item.get_closest_marker("parallel[1]") is None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long: by turns a test of several ranks and one of a worker's own, the demos first."""
    together = [item for item in items if on_several_ranks(item)]
    alone = [item for item in items if not on_several_ranks(item)]
    alone.sort(key=lambda item: "demos" not in item.path.parts)
    pairs = itertools.zip_longest(together, alone[: len(together)])
    items[:] = [item for pair in pairs for item in pair if item is not None] + alone[len(together) :]


@pytest.fixture(autouse=True)
def fresh_tape():
    """Start each test without annotation on an empty tape; fail one that leaves either behind."""
    pause_annotation()
    set_working_tape(Tape())
    yield
    annotating, blocks = annotate_tape(), len(get_working_tape().get_blocks())
    pause_annotation()
    set_working_tape(Tape())
    assert not annotating, "this test left annotation switched on"
    assert not blocks, f"this test left {blocks} blocks on the working tape"


@pytest.fixture
def annotation():
    """The context of a tape of its own, to be called once a functional."""
    return own_tape


def make_mesh(kind: str, cells: int = 4, width: float = 1.0, comm=COMM_WORLD, refinements: int = 0):
    """Return a uniform mesh of ``cells`` x ``cells + 1`` x ``cells + 2`` cells of the given width.

    With refinements, the finest of a hierarchy that starts with these cells. Of round and extruded meshes the size does
    not depend on ``cells``: a sphere refined at least once, a shell of two layers on the icosahedron, a slab of prisms.
    """
    if kind == "sphere":
        return sphere_hierarchy(2 * width, max(refinements, 1), comm)[-1]
    if kind == "shell":
        return ExtrudedMesh(sphere_hierarchy(2 * width, 0, comm)[0], 2, width / 2, extrusion_type="radial")
    if kind == "slab":
        return ExtrudedMesh(make_mesh("triangle", 2, width, comm), 2, width)
    if refinements:
        return MeshHierarchy(make_mesh(kind, cells, width, comm), refinements)[-1]
    counts = [cells, cells + 1, cells + 2]
    lengths = [width * n for n in counts]
    if kind == "interval":
        return IntervalMesh(counts[0], lengths[0], comm=comm)
    if kind in ("quadrilateral", "triangle"):
        return RectangleMesh(*counts[:2], *lengths[:2], quadrilateral=kind == "quadrilateral", comm=comm)
    return BoxMesh(*counts, *lengths, hexahedral=kind == "hexahedron", comm=comm)


@pytest.fixture(scope="session")
def space():
    """Return a factory of CG1 spaces: ``space(kind, cells, width, comm)``."""
    return lambda *args, **kwargs: FunctionSpace(make_mesh(*args, **kwargs), "CG", 1)


@pytest.fixture
def coordinates():
    """Return a function: a CG1 space -> coordinates of its owned nodes (nodes, dim)."""

    def of(V):
        X = Function(VectorFunctionSpace(V.mesh(), V.ufl_element())).interpolate(SpatialCoordinate(V.mesh()))
        return X.dat.data_ro.reshape(-1, V.mesh().geometric_dimension).copy()

    return of


@dataclass
class Case:
    """A network with controls m = (s, b, ...) and a state Y0 that reach the curved part of every activation."""

    network: Network
    m: Controls
    Y0: Function

    s = property(lambda self: self.m.s)
    b = property(lambda self: self.m.b)
    points = property(lambda self: [*self.m, self.Y0])

    def perturbation(self, seed: int = 7) -> tuple[Function, ...]:
        """Return directions of the controls and Y0."""
        rng = np.random.default_rng(seed)
        return tuple(normal(f.function_space(), rng, 0.1) for f in self.points)


def normal(space, rng: np.random.Generator, scale: float = 1.0) -> Function:
    """Return a Function with normal coefficients; serial."""
    out = Function(space)
    out.dat.data[:] = scale * rng.standard_normal(out.dat.data_ro.shape)
    return out


@pytest.fixture
def normal_function():
    return normal


def assert_taylor(J, start, direction):
    """Assert remainders of order 2 with the gradient and of order 3 with the Hessian, by pyadjoint's own test.

    The asymptotic range ends at round-off on one side and at the next order's remainder on the other. It is
    looked for by scaling the direction; a wrong derivative has the order 1 or 2 at every scale.
    """
    best = {"R1": 0.0, "R2": 0.0}
    for factor in (1.0, 4.0, 0.0625):
        scaled = [d._ad_mul(factor) for d in direction]
        rates = taylor_to_dict(J, start, scaled)
        assert min(rates["R0"]["Residual"]) > 1e-12, "the functional must depend on the controls"
        best = {key: max(best[key], min(rates[key]["Rate"])) for key in best}
        if best["R1"] >= 1.95 and best["R2"] >= 2.95:
            return
    raise AssertionError(
        f"J(m + e d) - J(m) - e J'd is O(e^2), with - e^2/2 d'Hd it is O(e^3); measured orders {best}"
    )


@pytest.fixture(name="assert_taylor")
def assert_taylor_fixture():
    return assert_taylor


@pytest.fixture
def make_network():
    """Return a factory of small networks: all stencils on tensor-product cells, low order on simplices."""

    def factory(
        kind: str, features: int = 2, layers: int = 3, activation=tanh, operators=None, cells: int = 3, degree: int = 0,
        control_cells: int | None = None, T: float = 0.6, comm=COMM_WORLD, refinements: int = 0, **settings,
    ) -> Network:
        V = FunctionSpace(make_mesh(kind, cells, comm=comm, refinements=refinements), "CG", 1)
        if operators is None:
            operators = stencil_operators if kind in ("interval", "quadrilateral") else low_order_operators
        D = operators(V)
        settings.setdefault("dynamics", Residual(activation))
        controls = ControlSpace(
            T, layers if control_cells is None else control_cells, D, features, degree,
            parameters=settings["dynamics"].parameters)
        return Network(D, controls, steps=layers, **settings)

    return factory


@pytest.fixture
def make_case(make_network):
    """Return a factory of cases: ``make_case(kind, images=2, **network)``."""

    def factory(kind: str, images: int = 2, **settings) -> Case:
        network = make_network(kind, **settings)
        rng = np.random.default_rng(3)
        m = network.control_space.random(rng, 0.3)
        for control in m[1:]:
            control.dat.data[:] = 0.3 * rng.standard_normal(control.dat.data_ro.shape)
        return Case(network, m, normal(network.state_space(images), rng))

    return factory
