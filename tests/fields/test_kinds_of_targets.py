"""Targets of images and of nodes: what they hold, how they move to other meshes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from firedrake import COMM_SELF, COMM_WORLD, Function, FunctionSpace, MeshHierarchy, SpatialCoordinate
from mpi4py import MPI
from support.networks import square

from ctrlnet.fields import Classes, NodalClasses, NodalFields, Numbers
from ctrlnet.fields.nodal_transfer import node_places


def space(cells=4, comm=COMM_WORLD):
    return FunctionSpace(square(cells, comm=comm), "CG", 1)


def test_class_weights_have_the_mean_one_over_the_sample():
    targets = Classes([0, 0, 1, 2], 3, weights=[1.0, 2.0, 4.0]).of_images()
    assert targets.weights.mean() == pytest.approx(1.0)
    assert np.allclose(targets.weights / targets.weights[0], [1, 1, 2, 4])
    assert np.array_equal(Classes([0, 0, 1, 2], 3).chosen(np.array([3, 0])).of_images().values, [2, 0])


def test_numbers_relative_and_not():
    y = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert np.allclose(Numbers(y, relative=True).of_images().weights, [1 / 25, 1.0])
    assert np.array_equal(Numbers(y).of_images().values, y.T)
    assert Numbers([1, 2, 3]).components == 1


class TestAtNodes:
    def test_masked_entries_may_be_anything(self):
        V = space(2)
        mask = np.arange(18).reshape(2, 9) % 3 > 0
        targets = NodalClasses(V, np.where(mask, 1, 255), 2, weights=[1.0, 3.0], mask=mask)
        assert np.array_equal(targets.density(0, 2), 3.0 * mask.T) and set(targets.values(0, 2)[mask.T]) == {1}
        fields = NodalFields(V, np.where(mask, 2.0, np.nan), relative=True, mask=mask)
        assert np.array_equal(fields.normaliser(0, 2), 4.0 * mask.T)
        assert NodalFields(V, np.ones((2, 9))).normaliser(0, 2) is None

    def test_functions(self):
        V = space(3)
        x, y = SpatialCoordinate(V.mesh())
        targets = NodalFields.of_functions([Function(V).interpolate(x + k * y) for k in range(3)])
        places = node_places(V)
        assert targets.components == 1
        assert np.allclose(targets.values(0, 3)[0], places[:, :1] + places[:, 1:] * np.arange(3))

    def test_on_other_meshes(self):
        coarse, fine = (FunctionSpace(mesh, "CG", 1) for mesh in MeshHierarchy(square(3), 1))
        x = node_places(fine)
        labels = (x[:, 0] > 2.5).astype(int)[None]
        there = NodalClasses(fine, labels, 2, mask=labels == labels).on(coarse)
        assert np.array_equal(there.values(0, 1)[:, 0], node_places(coarse)[:, 0] > 2.5)
        back = there.on(fine)
        assert (back.values(0, 1)[:, 0] != labels[0]).mean() < 0.2
        fields = NodalFields(coarse, node_places(coarse)[None, :, 0])
        assert np.allclose(fields.on(fine).values(0, 1)[0, :, 0], x[:, 0])
        assert np.allclose(NodalFields(fine, np.full((2, 2, fine.dim()), 3.0)).on(coarse).values(0, 2), 3.0)

    def test_files_are_read_slice_by_slice(self, tmp_path):
        V = space(2)
        labels = np.random.default_rng(0).integers(0, 3, (12, 9))
        np.save(tmp_path / "labels.npy", labels)
        stored = NodalClasses(V, np.load(tmp_path / "labels.npy", mmap_mode="r"), 3)
        assert np.array_equal(stored.chosen(np.array([4, 2])).values(0, 2), labels[[4, 2]].T)
        labels[5, 0] = 9
        np.save(tmp_path / "bad.npy", labels)
        bad = NodalClasses(V, np.load(tmp_path / "bad.npy", mmap_mode="r"), 3)
        bad.values(0, 5)
        with pytest.raises(ValueError, match="must lie in 0 to 2, received 0 to 9"):
            bad.values(4, 7)


BAD = {
    "labels out of range": (lambda V: NodalClasses(V, np.full((1, 25), 3), 3), "must lie in 0 to 2, received 3 to 3"),
    "labels that are floats": (lambda V: NodalClasses(V, np.zeros((1, 25)), 3), "integers.*received float64"),
    "labels of other nodes": (lambda V: NodalClasses(V, np.zeros((1, 9), int), 3), "25 nodes that this rank owns"),
    "no class": (lambda V: NodalClasses(V, np.zeros((1, 25), int), -1), "whole number of classes, at least one"),
    "half a class": (lambda V: NodalClasses(V, np.zeros((1, 25), int), 2.5), "received classes=2.5"),
    "weights for other classes": (lambda V: NodalClasses(V, np.zeros((1, 25), int), 3, weights=[1.0, 2.0]),
                                  "3 classes need as many positive weights, received"),
    "negative weights": (lambda V: Classes([0, 1], 2, weights=[1.0, -1.0]), "as many positive weights"),
    "a mask of numbers": (lambda V: NodalFields(V, np.zeros((1, 25)), mask=np.ones((1, 25))), "mask is boolean"),
    "NaN that is not masked": (lambda V: NodalFields(V, np.full((1, 25), np.nan)), "1 of 1 fields at nodes hold NaN"),
    "NaN in numbers": (lambda V: Numbers([[np.nan, 1.0]]), "1 of 1 targets hold NaN"),
    "a relative zero": (lambda V: Numbers([[1.0], [0.0]], relative=True), "Target 1 is zero, and no error is relative"),
    "words": (lambda V: Numbers([["a"]]), r"an array \(n, p\), received"),
    "labels of two axes": (lambda V: Classes(np.zeros((2, 2), int), 2), r"one number an image, received .*\(2, 2\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_targets_are_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(space(4))


@pytest.mark.parallel(nprocs=[2, 3])
def test_targets_move_alike_on_any_number_of_ranks():
    found = []
    for comm in (COMM_WORLD, COMM_SELF):
        coarse, fine = (FunctionSpace(mesh, "CG", 1) for mesh in MeshHierarchy(square(3, comm=comm), 1))
        for source, V in ((coarse, fine), (fine, coarse)):
            x = node_places(source)
            labels = (np.sin(x.sum(axis=1) + np.arange(3)[:, None]) > 0).astype(int)
            there = NodalClasses(source, labels, 2).on(V).values(0, 3)
            there, places = (np.concatenate(comm.allgather(a)) for a in (there, node_places(V)))
            found.append(there[np.lexsort(places.round(9).T)])
    same = all(np.array_equal(one, other) for one, other in zip(found[:2], found[2:], strict=True))
    assert COMM_WORLD.allreduce(same, op=MPI.LAND)
