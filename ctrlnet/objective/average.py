r"""What a mean over a sample is to the functionals and optimisers built on it, and what it asks of a readout.

With :math:`F_c(u)` the features of column c for the controls in time u,

.. math:: J(u, W, \beta) = \sum_c w_c\, \ell(W^T F_c(u) + \beta,\; y_c).

A column is an image, or a node of one where every node has scores of its own: see
:mod:`~ctrlnet.objective.columns`. Where the same image is seen on several meshes, each of them is an image of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from firedrake import Ensemble
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI

from ctrlnet.controls import ControlSet
from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk
from ctrlnet.objective.columns import Columns, Features, Reading
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.point import Point
from ctrlnet.objective.work import Work

__all__ = ["Average", "FeatureReadout", "ImageRows", "Linearisation"]

React = Callable[[np.ndarray], np.ndarray]


class Average(Protocol):
    """A weighted mean of losses over images, of which every value and derivative is that of all ranks."""

    network: Network
    readout: FeatureReadout
    sample: Sample
    loss: Loss
    work: Work
    ensemble: Ensemble | None

    @property
    def comm(self) -> MPI.Comm:
        """All ranks: losses and derivatives are sums over them."""

    @property
    def count(self) -> int:
        """Images of the mean."""

    @property
    def generators(self) -> Sequence[np.random.Generator]:
        """What batches are drawn, or changed, by."""

    def at(self, layers: LayerControls) -> Linearisation:
        """Return the mean at some controls in time; nothing is propagated before it is asked for."""

    def over(self, chosen: np.ndarray, replacing: Any = None) -> Average:
        """Return the mean over the images of the given numbers, counted together with this one.

        ``replacing`` is an earlier result of this method that is done with: its storage is used again.
        """

    def among(self, images: np.ndarray, replacing: Any = None) -> Average:
        """Return a mean over the images of the mean of the given, increasing numbers; otherwise as :meth:`over`."""

    def scores(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Return the scores; not counted as training work, and no trajectory is lost by it.

        Their shape is the columns': (K, images) on every rank where a column is an image.
        """

    def accuracy(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the weighted share of columns whose scores agree with their target."""


class Linearisation(Protocol):
    r"""A mean at fixed controls in time, :math:`u`, with what was propagated there.

    As long as no other controls were propagated since, the states are at hand; afterwards they are propagated again
    where a derivative needs them, and that is counted as work.

    Methods take the classifier :math:`(W, \beta)`, which costs no propagation to change. A direction is
    :math:`d = (\dot u, \dot W, \dot\beta)`. With :math:`\mathcal J = \partial c/\partial(u, W, \beta)` and H the loss's
    Hessian in the scores, weights included,

    * value: :math:`J`; gradient: :math:`J'`; tangent: :math:`J' d`; Hessian: :math:`J'' d`;
    * Gauss-Newton: :math:`G d = \mathcal J^T H \mathcal J d`, positive semidefinite where the loss is convex, and the
      Hessian where the loss's gradient vanishes.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """

    layers: LayerControls

    @property
    def imagewise(self) -> ImageRows | None:
        """The derivative of every image by itself, where the network's steps give it."""

    def features(self, keep: bool = True) -> Features:
        """Return the features of this rank's columns; without ``keep`` no trajectory is kept for derivatives.

        Raises
        ------
        PropagationError
            If a state is not finite.
        """

    def value(self, W: np.ndarray, beta: np.ndarray) -> float:
        """Return J. Raises :class:`~ctrlnet.PropagationError` if it is not finite."""

    def gradient(self, W: np.ndarray, beta: np.ndarray) -> Point:
        """Return J'."""

    def layers_gradient(self, W: np.ndarray, beta: np.ndarray) -> LayerControls:
        """Return the part of J' that belongs to the controls in time."""

    def tangent(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> float:
        """Return J' d."""

    def hessian(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        """Return J'' d."""

    def gauss_newton(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        """Return G d."""

    def coupling(
        self, W: np.ndarray, beta: np.ndarray, direction: LayerControls
    ) -> tuple[np.ndarray, Callable[[np.ndarray], LayerControls]]:
        r"""Return both halves of a product with G whose classifier reacts to the controls in time.

        Returns
        -------
        mixed
            :math:`G_{Wu}\dot u`, (features + 1, K), the last row that of beta.
        complete
            The map :math:`\dot W \mapsto G_{uu}\dot u + G_{uW}\dot W`, of the same shape; to be called once.
        """

    def projected_gauss_newton(
        self, W: np.ndarray, beta: np.ndarray, direction: LayerControls, react: React
    ) -> LayerControls:
        r"""Return the Schur complement :math:`(G_{uu} - G_{uW}G_{WW}^{-1}G_{Wu})\dot u`.

        Parameters
        ----------
        react
            The classifier's answer, :math:`G_{Wu}\dot u \mapsto -G_{WW}^{-1}G_{Wu}\dot u`, (features + 1, K) both.
        """
        mixed, complete = self.coupling(W, beta, direction)
        return complete(react(mixed))


class ImageRows(Protocol):
    """The ability to give the derivative of every image's scores by itself, where a column is an image."""

    @property
    def targets(self) -> np.ndarray:
        """What all images' scores are compared with, the image the last index, the same on every rank."""

    @property
    def weights(self) -> np.ndarray:
        """All images' weights in the mean, the same on every rank."""

    def features(self) -> np.ndarray:
        """Return the features (features, images) of all images, on every rank."""

    def rows(self, W: np.ndarray, dscores: np.ndarray) -> LayerControls:
        r"""Return :math:`\partial (q_i \cdot c_i)/\partial u` of every image i.

        Parameters
        ----------
        dscores
            One direction :math:`q_i` of the scores an image, (K, images), on every rank.

        Returns
        -------
        LayerControls
            Its arrays have a last axis of images.
        """


class FeatureReadout(Protocol):
    r"""What a mean asks of a readout: columns of features linear in final states, and a classifier for them.

    Attributes
    ----------
    features
        Number of features a column.
    classes
        K, the scores of a column.
    control_set
        The classifier W and beta, as controls.
    space
        Space of W. Readouts of several networks with the same space share a classifier.
    """

    network: Network
    classes: int
    comm: MPI.Comm
    control_set: ControlSet

    @property
    def space(self) -> WithGeometry: ...

    @property
    def features(self) -> int: ...

    def on(self, network: Network) -> Self:
        """Return the readout of another network, with the same classifier."""

    def arrays_of(self, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return W (features, K) and beta (K,) of degrees of freedom by name."""

    def by_name(self, W: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
        """Return W and beta, or derivatives with respect to them, as arrays of degrees of freedom by name."""

    def columns(self, sample: Sample, chunks: Sequence[Chunk], split: ImageSplit, most_bytes: int) -> Columns:
        """Return the columns of a sample.

        Parameters
        ----------
        chunks, split
            The images of this ensemble member, and who has which.
        most_bytes
            The most bytes of targets and weights that are kept.

        Raises
        ------
        ValueError
            If the targets of the sample are not those of this readout.
        """

    def reading(self, chunks: Sequence[Chunk], split: ImageSplit) -> Reading:
        """Return the columns of images without targets."""
