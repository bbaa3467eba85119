"""Values at points: scattered stations and grids of latitudes and longitudes, on planes, in volumes and on globes."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, FunctionSpace, UnitCubeMesh, UnitIntervalMesh, UnitSquareMesh
from mpi4py import MPI

import ctrlnet as cn
from ctrlnet.fields import AugmentedSample, Noise, PointValues
from ctrlnet.fields.nodal_transfer import node_places
from ctrlnet.operators import sphere_hierarchy

MESHES = {1: UnitIntervalMesh, 2: UnitSquareMesh, 3: UnitCubeMesh}


def globe(level=2, comm=COMM_WORLD):
    return FunctionSpace(sphere_hierarchy(2.0, level, comm)[-1], "CG", 1)


def nodal(inputs, V):
    return inputs.onto(V).nodal(inputs, 0, len(inputs))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_linear_functions_are_kept_between_stations(dim):
    V = FunctionSpace(MESHES[dim](*[4] * dim), "CG", 1)
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * dim), axis=-1).reshape(-1, dim)
    points = np.concatenate([corners, np.random.default_rng(0).random((30, dim))])
    slope = np.arange(1.0, dim + 1)
    inputs = PointValues(points, np.stack([points @ slope, np.full(len(points), 3.0)]))
    found, x = nodal(inputs, V), node_places(V)
    assert np.allclose(found[:, 0, 0], x @ slope) and np.allclose(found[:, 0, 1], 3.0)


def test_outside_of_all_triangles_the_nearest_station_counts():
    V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 1)
    points = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.6]])
    found = nodal(PointValues(points, np.array([[1.0, 2.0, 3.0]])), V)[:, 0, 0]
    x = node_places(V)
    nearest = np.linalg.norm(x[:, None] - points, axis=2).argmin(axis=1)
    at_middle = (x == 0.5).all(axis=1)
    assert np.array_equal(found[~at_middle], nearest[~at_middle] + 1.0)
    assert found[at_middle] == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 3)


def test_missing_stations():
    V = FunctionSpace(UnitSquareMesh(4, 4), "CG", 1)
    points = np.random.default_rng(0).random((40, 2))
    mask = np.random.default_rng(1).random((3, 40)) < 0.7
    inputs = PointValues(points, np.where(mask, 4.0, np.nan)[:, None].repeat(2, axis=1), mask=mask)
    assert inputs.channels == 2 and np.allclose(nodal(inputs, V), 4.0)


class TestGlobe:
    def test_stations(self):
        V, rng = globe(3), np.random.default_rng(0)
        points = rng.standard_normal((2000, 3))
        points *= 2.0 / np.linalg.norm(points, axis=1, keepdims=True)
        found = nodal(PointValues(points, np.stack([points[:, 0] * points[:, 2], np.ones(2000)])), V)
        x = node_places(V)
        assert np.abs(found[:, 0, 0] - x[:, 0] * x[:, 2]).max() < 0.1 and np.allclose(found[:, 0, 1], 1.0)

    @pytest.mark.parametrize("turned", [False, True], ids=["south to north", "north to south"])
    @pytest.mark.parametrize("first", [0.0, -180.0, -177.5])
    def test_grids_are_of_second_order(self, first, turned):
        V, errors = globe(3), []
        x = node_places(V) / 2.0
        for n in (18, 36):
            lat = -90 + (np.arange(n) + 0.5) * 180 / n
            lat = lat[::-1] if turned else lat
            lon = first + np.arange(2 * n) * 180 / n
            a, b = np.radians(lat)[:, None], np.radians(lon)[None]
            fields = np.stack([np.cos(a) * np.cos(b) * np.sin(a) + np.sin(a), 1 + 0 * a * b])
            found = nodal(PointValues.latitude_longitude(lat, lon, fields), V)
            errors.append(np.abs(found[:, 0, 0] - x[:, 0] * x[:, 2] - x[:, 2]).max())
            assert np.allclose(found[:, 0, 1], 1.0, rtol=1e-14)
        assert errors[1] < errors[0] / 3 and errors[1] < 0.01

    def test_poles_of_a_grid(self):
        V = globe(2)
        lat, lon = np.linspace(-90, 90, 7), np.arange(0, 360, 30.0)
        found = nodal(PointValues.latitude_longitude(lat, lon, np.tile(lat[:, None], (1, 1, 12))), V)[:, 0, 0]
        x = node_places(V)
        assert np.allclose(found, np.degrees(np.arcsin(x[:, 2] / np.linalg.norm(x, axis=1))), atol=1e-8)

    def test_a_masked_grid_of_channels(self):
        lat, lon = np.linspace(-80, 80, 9), np.arange(0, 360, 20.0)
        mask = np.random.default_rng(0).random((2, 9, 18)) < 0.8
        values = np.where(mask[:, None], 2.0, np.nan).repeat(3, axis=1)
        inputs = PointValues.latitude_longitude(lat, lon, values, mask=mask)
        assert inputs.channels == 3 and np.allclose(nodal(inputs, globe()), 2.0)


def test_they_train_and_are_augmented():
    V = globe(2)
    D = cn.low_order_operators(V)
    lat, lon = np.linspace(-80, 80, 9), np.arange(0, 360, 20.0)
    labels = np.arange(20) % 2
    values = np.random.default_rng(0).random((20, 9, 18)) + labels[:, None, None] * np.sin(np.radians(lat))[:, None]
    sample = cn.Sample(PointValues.latitude_longitude(lat, lon, values), labels, 2)
    network = cn.Network(D, cn.ControlSpace(1.0, 2, D, 2))
    problem = cn.TrainingProblem(cn.Readout(network, 2), sample)
    result = cn.train_level(problem, network.control_space.random(np.random.default_rng(0), 0.1), iterations=3)
    assert result.history.last.objective < result.history.iterations[0].objective
    noisy = AugmentedSample(sample, [Noise(0.1)], np.random.default_rng(0)).chosen(np.arange(5))
    assert not np.array_equal(noisy.inputs.values(0, 5), sample.inputs.values(0, 5))
    assert nodal(noisy.inputs, V).shape == (V.dim(), 1, 5)


SQUARE = FunctionSpace(UnitSquareMesh(2, 2, comm=COMM_SELF), "CG", 1)
GRID = np.linspace(-80, 80, 9), np.arange(0, 360, 20.0)


@pytest.mark.parametrize("call, message", [
    (lambda: nodal(PointValues([[0.5, 0.5], [2.0, 0.5], [0.1, -0.3], [0, 0]], np.zeros((1, 4))), SQUARE),
     "2 of 4 points lie outside of the mesh"),
    (lambda: nodal(PointValues([[0.5, 0.5, 0.5]], np.zeros((1, 1))), SQUARE), "3 dimensions are no points of a mesh"),
    (lambda: nodal(PointValues([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]], np.zeros((1, 3))), SQUARE), "do not span 2"),
    (lambda: nodal(PointValues([[1.0, 0, 0], [0, 0, 2.0]], np.zeros((1, 2))), globe()), "1 of 2 points lie outside"),
    (lambda: PointValues([[0.5, 0.5]], np.zeros((1, 2))), r"1 points are \(n, channels, 1\), received shape \(1, 2\)"),
    (lambda: PointValues([0.5, 0.5], np.zeros((1, 2))), r"finite numbers \(p, dim\), received shape \(2,\)"),
    (lambda: PointValues([[0.5]], [[np.nan]]), "1 of 1 inputs hold NaN"),
    (lambda: PointValues([[0.5]], [[1.0]], mask=[[1.0]]), "mask is boolean"),
    (lambda: PointValues.latitude_longitude([0, 100], GRID[1], np.zeros((1, 2, 18))), "Latitudes are.*-90 to 90"),
    (lambda: PointValues.latitude_longitude([0, 10, 5], GRID[1], np.zeros((1, 3, 18))), "increasing or decreasing"),
    (lambda: PointValues.latitude_longitude(GRID[0], [0, 180, 360], np.zeros((1, 9, 3))), "less than 360"),
    (lambda: PointValues.latitude_longitude(*GRID, np.zeros((1, 18, 9))), "9 latitudes and 18 longitudes"),
    (lambda: nodal(PointValues.latitude_longitude(*GRID, np.zeros((1, 9, 18))), SQUARE), "places on a globe"),
    (lambda: PointValues.latitude_longitude(*GRID, np.zeros((1, 9, 18))).averaged(2), "no pixels to average"),
])
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parallel(nprocs=[2, 3])
def test_the_same_on_any_number_of_ranks():
    points = np.random.default_rng(0).random((50, 2))
    values = np.sin(points.sum(axis=1))[None]
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        for V, inputs in (
                (FunctionSpace(UnitSquareMesh(5, 5, comm=comm), "CG", 1), PointValues(points, values)),
                (globe(2, comm), PointValues.latitude_longitude(*GRID, np.random.default_rng(1).random((1, 9, 18))))):
            out, places = (np.concatenate(comm.allgather(a)) for a in (nodal(inputs, V), node_places(V)))
            found.append(out[np.lexsort(places.round(9).T)])
    error = max(float(np.abs(a - b).max()) for a, b in zip(found[:2], found[2:], strict=True))
    assert COMM_WORLD.allreduce(error, op=MPI.MAX) < 1e-12
