r"""The average loss over a sample, streamed through the network in chunks of images.

Each chunk is propagated by all ranks of the mesh together. Its features are then summed over ranks, and
each rank takes its share of the chunk's images for scores and losses. An ensemble splits the images first:
each member has a copy of the mesh and its own chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from firedrake import Ensemble
from mpi4py import MPI

from ctrlnet.errors import finite
from ctrlnet.fields.inputs import NodalMap
from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import Average, FeatureReadout
from ctrlnet.objective.chunks import Chunk, chunk_size, chunks_of
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.linearisation import SampleLinearisation
from ctrlnet.objective.losses import Loss, SoftmaxCrossEntropy, checked_loss
from ctrlnet.objective.memory_plan import MemoryPlan
from ctrlnet.objective.nodal_inputs import NodalInputs, nodal_map_for
from ctrlnet.objective.trajectories import Storage, Trajectories
from ctrlnet.objective.work import Work

__all__ = ["SampleAverage"]


class SampleAverage(Average):
    r"""Weighted mean of :math:`\ell(W^T F(u) + \beta,\; y)` over the columns of a sample, u the controls in time.

    Its values and derivatives are those of :meth:`at`.

    Parameters
    ----------
    readout
        The network and its readout.
    sample
        Inputs and targets.
    loss
        Loss of one column. Default: softmax cross-entropy.
    memory_limit
        Bytes a rank may use to keep nodal values of inputs and targets, at most a quarter each, and states for the
        derivatives. Chunks whose trajectories do not fit are
        propagated again; where not even one chunk's fits, its adjoint runs from a few stored states by a
        binomial checkpoint schedule. Tangents and Hessian products always hold one chunk's trajectory.
    work
        Counter of sweeps; shared between objects that are to be counted together.
    ensemble
        A Firedrake ensemble whose members share the images out, each on a mesh of its own built with
        ``comm=ensemble.comm``. Every rank is given the whole sample. Default: the mesh's ranks have all images.
    projection
        Maps inputs to nodal values of the network's space. Default: the inputs' own, for pixels
        :class:`~ctrlnet.fields.PixelProjection`.
    storage
        That of an earlier average, used again where it fits this one's chunks; the states that it holds for the earlier
        average are lost to it as soon as this one propagates.

    Attributes
    ----------
    kept_bytes : int
        What inputs and targets at nodes take of the memory limit, which trajectories do not have.
    trajectories : Trajectories
        What is kept, recomputed and checkpointed, and the sample's chunks.

    Raises
    ------
    ValueError
        If the sample's targets are not those of the readout or of the loss, its inputs have other channels than the
        network opens or do not fit the mesh, the mesh does not live on the ensemble's spatial communicator, or there
        are fewer images than members.
    """

    def __init__(
        self, readout: FeatureReadout, sample: Sample, loss: Loss | None = None, memory_limit: int = 2**30,
        work: Work | None = None, ensemble: Ensemble | None = None,
        projection: NodalMap | None = None, storage: Storage | None = None,
    ):
        if not (finite(memory_limit) and memory_limit >= 0):
            raise ValueError(f"memory_limit must not be negative, received {memory_limit!r} bytes.")
        self.readout = readout
        self.network = network = readout.network
        self.sample = sample
        self.loss = SoftmaxCrossEntropy() if loss is None else checked_loss(loss)
        self.work = Work() if work is None else work
        self.memory_limit = memory_limit
        self.ensemble = ensemble
        self._split = split = ImageSplit(len(sample), network.comm, ensemble)
        split.check_shares()
        self._map = nodal_map_for(network, sample.inputs, projection)
        self.chunk_images = chunk_size(network.sweep, split)
        chunks = chunks_of(split, self.chunk_images)
        # At most a quarter of the memory each for inputs and for targets; what is left is for trajectories.
        inputs = NodalInputs(sample.inputs, self._map, network.sweep.dtype, chunks, memory_limit // 4)
        self._columns = readout.columns(sample, chunks, split, memory_limit // 4)
        self.loss.check(self._columns.terms(chunks[0]).targets)
        self.kept_bytes = inputs.nbytes + self._columns.kept_bytes
        self.plan = MemoryPlan.within(
            memory_limit, self.kept_bytes, network.sweep, network.steps, self.chunk_images, len(chunks), self.comm)
        shape = network.sweep, network.steps, self.chunk_images
        if storage is None or not storage.fits(*shape):
            storage = Storage(*shape)
        self.storage = storage
        self.trajectories = Trajectories(network, chunks, split, inputs, self.plan, self.work, storage)

    @property
    def keeps_trajectories(self) -> bool:
        """Whether all trajectories are kept for the derivatives."""
        return self.plan.keeps_all

    @property
    def snapshots(self) -> int | None:
        return self.plan.snapshots

    @property
    def comm(self) -> MPI.Comm:
        return self._split.comm

    @property
    def count(self) -> int:
        return len(self.sample)

    @property
    def generators(self) -> Sequence[np.random.Generator]:
        return self.sample.generators

    def at(self, layers: LayerControls) -> SampleLinearisation:
        return SampleLinearisation(layers, self.trajectories, self._columns, self.loss, self._split)

    def over(self, chosen: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        return SampleAverage(
            self.readout, self.sample.chosen(chosen), self.loss, self.memory_limit, self.work, self.ensemble,
            self._map, None if replacing is None else replacing.storage)

    def among(self, images: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        return self.over(images, replacing)

    def _scored(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Yield the scores of this rank's columns of every chunk."""
        for chunk, state in self.trajectories.finals(layers):
            yield chunk, W.T @ self._columns.features(chunk, state) + beta[:, None]

    def scores(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        return self._columns.gathered_scores(
            [scores for _, scores in self._scored(layers, W, beta)], self.readout.classes)

    def relative_error(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> float:
        r"""Return :math:`\bigl(\sum_c w_c |W^T F_c + \beta - y_c|^2 / \sum_c w_c |y_c|^2\bigr)^{1/2}`, of numbers y.

        Raises
        ------
        ValueError
            If the targets are classes.
        """
        sums = np.zeros(2)
        for chunk, scores in self._scored(layers, W, beta):
            terms = self._columns.terms(chunk)
            if terms.targets.ndim == 1:
                raise ValueError("Classes have no relative error. Ask for the accuracy.")
            for k, values in enumerate((scores - terms.targets, terms.targets)):
                sums[k] += terms.weights @ (values**2).sum(axis=0)
        self._split.sum(sums)
        return float(np.sqrt(sums[0] / sums[1]))

    def accuracy(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> float:
        sums = np.zeros(2)
        for chunk, scores in self._scored(layers, W, beta):
            terms = self._columns.terms(chunk)
            right = self.loss.agrees(scores, terms.targets)
            sums += terms.weights[right].sum(), terms.weights.sum()
        self._split.sum(sums)
        return float(sums[0] / sums[1])
