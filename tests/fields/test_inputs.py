"""Inputs of every kind: channels, dtypes, masks, other meshes, files, and what is refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from firedrake import (
    COMM_SELF,
    COMM_WORLD,
    Function,
    FunctionSpace,
    MeshHierarchy,
    RectangleMesh,
    SpatialCoordinate,
    VectorFunctionSpace,
    as_vector,
)
from mpi4py import MPI
from support.networks import blobs, small_network, small_problem, square

import ctrlnet as cn
from ctrlnet.fields import NodalValues, PixelMap, PixelProjection, Pixels, averaged_pixels
from ctrlnet.fields.nodal_transfer import node_places
from ctrlnet.fields.stores import Rows
from ctrlnet.operators import sphere_hierarchy


def space(cells=4, comm=COMM_WORLD):
    return FunctionSpace(square(cells, comm=comm), "CG", 1)


def nodal(inputs, V):
    return inputs.onto(V).nodal(inputs, 0, len(inputs))


class TestPixels:
    rng = np.random.default_rng(0)
    colours = rng.random((5, 6, 6, 3))

    @pytest.mark.parametrize("axis", [-1, 3, 1, 2])
    def test_channels_are_where_the_caller_says(self, axis):
        moved = np.moveaxis(self.colours, -1, axis)
        inputs = Pixels(moved, channel_axis=axis)
        assert inputs.channels == 3 and inputs.pixels == (6, 6)
        expected = [PixelProjection(space(), (6, 6))(self.colours[..., c]) for c in range(3)]
        assert np.allclose(nodal(inputs, space(4)), np.stack(expected, axis=1), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("kind", [np.uint8, np.int64, bool, np.float32, ">f8", "list", "read-only", "Fortran"])
    def test_arrays_of_every_kind(self, kind):
        images = self.rng.integers(0, 200, (3, 4, 4))
        given = {
            "list": lambda: images.tolist(), "Fortran": lambda: np.asfortranarray(images.astype(float)),
            "read-only": lambda: np.broadcast_to(images.astype(float), images.shape),
        }.get(kind, lambda: images.astype(kind))()
        values = Pixels(given).values(0, 3)
        expected = {np.uint8: images / 255, bool: images != 0}.get(kind, images)
        assert values.dtype == float and np.allclose(values[:, 0], expected, rtol=1e-6)

    def test_volumes_and_lines(self, make_network):
        for shape, mesh in (((3, 6, 5, 4), "hexahedron"), ((3, 7), "interval")):
            V = make_network(mesh).space
            inputs = Pixels(self.rng.random((*shape, 2)), channel_axis=-1)
            assert nodal(inputs, V).shape == (V.dof_dset.size, 2, 3)

    def test_missing_pixels_keep_constants(self):
        mask = self.rng.random((2, 6, 6)) < 0.6
        images = np.where(mask, 3.5, np.nan)
        assert np.allclose(nodal(Pixels(images, mask=mask), space(6)), 3.5)
        smooth = np.broadcast_to(np.arange(6.0), (1, 6, 6))
        hole = np.ones((1, 6, 6), bool)
        hole[0, 2:4, 2:4] = False
        full, holed = (nodal(Pixels(smooth, mask=m), space(6))[:, 0, 0] for m in (None, hole))
        x = node_places(space(6))
        far = np.abs(x - 3).max(axis=1) > 2.1
        assert np.allclose(full[far], holed[far]) and not np.allclose(full, holed)

    def test_averaged_pixels_with_a_mask(self):
        mask = self.rng.random((2, 6, 6)) < 0.6
        mask[0, :2, :2] = False
        coarse = Pixels(np.where(mask, 2.0, np.nan), mask=mask).averaged(2)
        assert not coarse.known(0, 2)[0, 0, 0, 0]
        assert np.allclose(coarse.values(0, 2)[coarse.known(0, 2)], 2.0)
        assert np.allclose(nodal(coarse, space(3)), 2.0)

    def test_maps_through_other_resolutions(self):
        V, inputs = space(3), Pixels(self.colours, channel_axis=-1)
        averaged = averaged_pixels(V, (6, 6), 2)
        coarse = inputs.averaged(2)
        assert isinstance(averaged, PixelMap)
        assert np.allclose(averaged.nodal(inputs, 1, 4), coarse.onto(V).nodal(coarse, 1, 4))

    BAD = {
        "channels where none were named": (
            lambda: Pixels(np.zeros((2, 3, 4, 4, 4))), "1 to 3 pixel axes, received shape .*channel_axis=-1"),
        "the axis of images": (lambda: Pixels(np.zeros((2, 3, 4)), channel_axis=0), "not the first, which counts"),
        "no such axis": (lambda: Pixels(np.zeros((2, 3, 4)), channel_axis=3), "one of the 3 axes.*received 3"),
        "NaN": (lambda: Pixels(np.full((2, 3, 4), np.nan)), "2 of 2 images hold NaN.*mask what is missing"),
        "a mask of another shape": (
            lambda: Pixels(np.zeros((2, 3, 4)), mask=np.ones((2, 3), bool)),
            r"\(2, 3, 4\); received bool of shape \(2, 3\)"),
        "a mask of numbers": (
            lambda: Pixels(np.zeros((2, 3, 4)), mask=np.ones((2, 3, 4))), "boolean.*received float64"),
        "nothing known": (
            lambda: nodal(Pixels(np.zeros((2, 3, 3)), mask=np.zeros((2, 3, 3), bool)), space(3)),
            "mask leaves nothing of an input: number 0"),
        "colours on a flat mesh": (
            lambda: nodal(Pixels(np.zeros((2, 6, 6, 3))), space(3)), "does not fit the mesh.*channel_axis=-1"),
        "another map": (
            lambda: cn.SampleAverage(
                cn.Readout(small_network(4), 3), blobs(4), projection=averaged_pixels(space(2), (6, 6), 2)),
            "map takes them to"),
    }

    @pytest.mark.parametrize("name", BAD)
    def test_what_is_refused(self, name):
        call, message = self.BAD[name]
        with pytest.raises(ValueError, match=message):
            call()


class TestNodalValues:
    def test_functions_and_arrays_are_the_same(self):
        V = space(4)
        x, y = SpatialCoordinate(V.mesh())
        functions = [Function(VectorFunctionSpace(V.mesh(), "CG", 1, dim=2)).interpolate(as_vector([x * k, y + k]))
                     for k in range(3)]
        inputs = NodalValues.of_functions(functions)
        places = node_places(V)
        expected = np.stack([[places[:, 0] * k, places[:, 1] + k] for k in range(3)])
        assert inputs.channels == 2 and np.allclose(inputs.values(0, 3), expected)
        assert np.allclose(nodal(inputs, V), np.moveaxis(expected, 2, 0).swapaxes(1, 2))
        scalar = NodalValues.of_functions([Function(V).interpolate(x)])
        assert scalar.channels == 1 and np.allclose(scalar.values(0, 1)[0, 0], places[:, 0])

    @pytest.mark.parametrize("kind", ["square", "sphere"])
    def test_other_levels_keep_constants_and_smooth_fields(self, kind):
        meshes = (MeshHierarchy(RectangleMesh(4, 4, 6.0, 6.0), 2) if kind == "square" else sphere_hierarchy(1.0, 3)[1:])
        spaces = [FunctionSpace(mesh, "CG", 1) for mesh in meshes]
        source = spaces[1]
        x = node_places(source)
        inputs = NodalValues(source, np.stack([np.full(len(x), 2.5), np.sin(0.5 * x[:, 0])]))
        for V in spaces:
            found, places = nodal(inputs, V), node_places(V)
            assert np.allclose(found[:, 0, 0], 2.5, rtol=1e-13)
            assert np.abs(found[:, 0, 1] - np.sin(0.5 * places[:, 0])).max() < 0.25

    def test_missing_values(self):
        V = space(6)
        known = np.random.default_rng(0).random((2, V.dim())) < 0.7
        inputs = NodalValues(V, np.where(known, 1.5, np.nan), mask=known)
        assert np.allclose(nodal(inputs, V), 1.5) and np.allclose(nodal(inputs, space(3)), 1.5)

    def test_a_network_of_nodal_inputs_is_that_of_their_pixels(self):
        problem = small_problem()
        sample = problem.average.sample
        own = PixelProjection(problem.network.space, sample.pixels)(sample.images)
        same = cn.TrainingProblem(
            problem.readout, cn.Sample(NodalValues(problem.network.space, own.T), sample.labels, 3),
            control_size=1e-3, weights_gradient=1e-2, weights_size=1e-2)
        m = problem.controls(np.random.default_rng(0), 0.3)
        assert float(problem.functional(m)) == pytest.approx(float(same.functional(m)), rel=1e-13)

    @pytest.mark.parametrize("make, message", [
        (lambda V: NodalValues(V, np.zeros((2, 5))), "25 nodes that this rank owns, received shape"),
        (lambda V: NodalValues(V, np.full((2, 25), np.inf)), "2 of 2 inputs hold NaN"),
        (lambda V: NodalValues(V, np.zeros((2, 25)), mask=np.ones((2, 24), bool)), "A mask is boolean.*(2, 25)"),
        (lambda V: NodalValues.of_functions([]), "at least one Function"),
        (lambda V: NodalValues.of_functions([Function(V), Function(space(2))]), "Functions of one space"),
        (lambda V: cn.Sample(NodalValues(V, np.zeros((2, 25))), [0, 1], 2).averaged(2), "no pixels to average"),
        (lambda V: cn.Sample(NodalValues(V, np.zeros((2, 25))), [0, 1], 2).pixels, "no pixels"),
        (lambda V: averaged_pixels(V, (4, 4), 1).check(NodalValues(V, np.zeros((2, 25)))), "no pixels"),
        (lambda V: NodalValues(V, np.zeros((2, 25))).onto(V).check(Pixels(np.zeros((2, 4, 4)))), "no nodal values"),
    ])
    def test_what_is_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make(space(4))


@pytest.mark.parallel(nprocs=[2, 3])
def test_nodal_values_move_alike_on_any_number_of_ranks():
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        spaces = [FunctionSpace(mesh, "CG", 1) for mesh in MeshHierarchy(square(3, comm=comm), 1)]
        moved = []
        for source, V in (spaces, spaces[::-1]):
            x = node_places(source)
            known = np.cos(x[:, :1] + np.arange(2)).T > -0.8
            values = np.where(known, np.sin(x[:, 0] + np.arange(2)[:, None]), np.nan)
            inputs = NodalValues(source, values, mask=known)
            out, places = nodal(inputs, V), node_places(V)
            out, places = (np.concatenate(comm.allgather(a)) for a in (out, places))
            moved.append(out[np.lexsort(places.round(9).T)])
        found.append(moved)
    for one, other in zip(*found, strict=True):
        assert COMM_WORLD.allreduce(float(np.abs(one - other).max()), op=MPI.MAX) < 1e-13


class TestFiles:
    @pytest.fixture(params=["memory map", "HDF5"])
    def stored(self, request, tmp_path):
        images = np.random.default_rng(0).random((40, 6, 6)).astype(np.float32)
        if request.param == "HDF5":
            with h5py.File(tmp_path / "images.h5", "w") as file:
                file["images"] = images
            with h5py.File(tmp_path / "images.h5", "r") as file:
                yield file["images"], images
        else:
            np.save(tmp_path / "images.npy", images)
            yield np.load(tmp_path / "images.npy", mmap_mode="r"), images

    def test_the_numbers_are_those_of_the_array(self, stored):
        stored, images = stored
        rows, whole = Rows(stored, "images"), Rows(images, "images")
        assert not rows.in_memory and whole.in_memory and rows.shape == whole.shape
        numbers = np.array([7, 3, 3, 30, 0])
        for chosen in (slice(None), numbers):
            assert np.array_equal(rows.chosen(np.arange(40)[chosen]).read(1, 4), images[chosen][1:4])
        assert np.array_equal(rows.chosen(numbers).chosen(np.array([2, 0])).read(), images[[3, 7]])
        labels = np.arange(40) % 3
        readout = small_problem().readout
        values = []
        for inputs in (stored, images):
            problem = cn.TrainingProblem(readout, cn.Sample(Pixels(inputs), labels, 3))
            m = problem.controls(np.random.default_rng(0), 0.3)
            values.append(float(problem.functional(m)))
            result = cn.train_level(
                problem, m, iterations=2, rng=np.random.default_rng(0),
                schedule=cn_schedule())
            values[-1] = np.array([values[-1], *result.history.column("objective")])
        assert np.array_equal(*values)

    def test_nothing_is_read_before_it_is_needed(self, stored, monkeypatch):
        stored, _ = stored
        read, old = [], Rows.read
        monkeypatch.setattr(Rows, "read", lambda self, a=0, b=None: read.append((a, b)) or old(self, a, b))
        inputs = Pixels(stored)
        sample = cn.Sample(inputs, np.zeros(40, int), 3).chosen(np.arange(0, 40, 2))
        assert not read
        sample.values(3, 5)
        assert read and set(read) == {(3, 5)}

    def test_a_bad_value_is_found_when_it_is_read(self, tmp_path):
        images = np.zeros((10, 4, 4))
        images[7, 0, 0] = np.nan
        np.save(tmp_path / "images.npy", images)
        inputs = Pixels(np.load(tmp_path / "images.npy", mmap_mode="r"))
        inputs.values(0, 7)
        with pytest.raises(ValueError, match="1 of 4 images hold NaN or infinite values, the first is number 7"):
            inputs.values(6, 10)


def cn_schedule():
    from ctrlnet.optimise import SampleSchedule

    return SampleSchedule(12, 2.0, 1)
