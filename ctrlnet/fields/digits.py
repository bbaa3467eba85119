"""Digits on meshes: MNIST's images, the square of 28 by 28 pixels, and nodal values on it as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from firedrake import COMM_WORLD, Function, FunctionSpace, RectangleMesh, SpatialCoordinate
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI

from ctrlnet.fields.mnist import mnist, mnist_sample
from ctrlnet.fields.sample import Sample

__all__ = ["SIDE", "as_picture", "digit_samples", "digit_space"]

SIDE = 28.0  # of the domain: the unit of length is a pixel of the full image


def digit_space(cells: int, comm: MPI.Comm = COMM_WORLD) -> WithGeometry:
    """Return the Q1 space on the square :math:`[0, 28]^2` of cells x cells quadrilaterals."""
    return FunctionSpace(RectangleMesh(cells, cells, SIDE, SIDE, quadrilateral=True, comm=comm), "CG", 1)


def digit_samples(
    folder: str | Path | None = None, train: int | None = None, test: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Sample, Sample]:
    """Return training and test images of MNIST with their labels.

    Parameters
    ----------
    folder
        Of MNIST's four IDX files. None: the shipped sample, 4,000 training and 1,000 test images.
    train, test
        How many of each: a balanced subset, drawn. None: all; they keep their order if both are.
    rng
        For the draw.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`~ctrlnet.fields.mnist` and :meth:`~ctrlnet.fields.ImageData.subset`; ValueError if there is a draw
        and no generator.
    """
    data = mnist_sample() if folder is None else mnist(folder)
    if train is not None or test is not None:
        if rng is None:
            raise ValueError("A subset of the images is drawn at random: give a seeded generator, rng=.")
        n_train, n_test = (
            len(own) if n is None else n for n, own in ((train, data.train_labels), (test, data.test_labels)))
        data = data.subset(n_train, n_test, rng)
    return Sample(data.train_images, data.train_labels), Sample(data.test_images, data.test_labels)


def as_picture(V: WithGeometry, values: np.ndarray) -> np.ndarray:
    """Return nodal values on a uniform square as a picture, on every rank.

    Parameters
    ----------
    V
        Of :func:`digit_space`, or a space on a refinement of its mesh.
    values
        (owned nodes, ...), of this rank.

    Returns
    -------
    numpy.ndarray
        (rows, columns, ...), the top row first.
    """
    places = [Function(V).interpolate(x).dat.data_ro.copy() for x in SpatialCoordinate(V.mesh())]
    parts = V.mesh().comm.allgather((*places, values))
    x, y, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    side = round(np.sqrt(x.size))
    return values[np.lexsort((x.round(6), -y.round(6)))].reshape(side, side, *values.shape[1:])
