"""What a trained network says of inputs, with or without targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from firedrake import Ensemble, Function

from ctrlnet.fields.inputs import Inputs, NodalMap
from ctrlnet.fields.sample import Sample
from ctrlnet.objective.average import FeatureReadout
from ctrlnet.objective.chunks import chunk_size, chunks_of
from ctrlnet.objective.image_split import ImageSplit
from ctrlnet.objective.losses import Loss
from ctrlnet.objective.nodal_inputs import nodal_map_for
from ctrlnet.objective.point import Point

__all__ = ["Prediction", "Predicts", "State"]


@dataclass(frozen=True)
class State:
    """The state of one image at a time: a scalar Function a feature, named ``Y0``, ``Y1`` and so on."""

    time: float
    features: tuple[Function, ...]


class Prediction:
    r"""Scores :math:`W^T F + \beta` of inputs for fixed controls, and what they decide on.

    Inputs pass through chunk by chunk; of the states none is kept.

    Parameters
    ----------
    readout
        The network and its readout.
    point
        All controls.
    loss
        Says what scores stand for.
    classes
        Whether scores decide on a class; else they are numbers.
    ensemble
        Its members share the inputs out; some may have none.
    projection
        Maps inputs to nodal values of the network's space. Default: the inputs' own.
    """

    def __init__(
        self, readout: FeatureReadout, point: Point, loss: Loss, classes: bool, ensemble: Ensemble | None = None,
        projection: NodalMap | None = None,
    ):
        self.readout, self.network = readout, readout.network
        self._point, self._loss, self._classes = point, loss, classes
        self._ensemble, self._projection = ensemble, projection

    def scores(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the scores of inputs.

        Parameters
        ----------
        inputs
            As those of a :class:`~ctrlnet.Sample`.
        projection
            In place of the prediction's own.

        Returns
        -------
        numpy.ndarray
            (K, n) on every rank; with a :class:`~ctrlnet.NodalReadout` (K, owned nodes, n), of this ensemble member's
            inputs.

        Raises
        ------
        ValueError
            If the inputs have other channels than the network opens, or do not fit its mesh.
        PropagationError
            If a state is not finite.
        """
        fields, network, layers = Sample(inputs).inputs, self.network, self._point.layers
        split = ImageSplit(len(fields), network.comm, self._ensemble)
        chunks = chunks_of(split, size := chunk_size(network.sweep, split))
        reading = self.readout.reading(chunks, split)
        nodal_map = nodal_map_for(network, fields, projection or self._projection)
        trajectory, parts = network.sweep.trajectory(network.steps, size, keep=False), []
        for chunk in chunks:
            x = nodal_map.nodal(fields, chunk.start, chunk.stop)
            network.opening.open(layers, x, trajectory.initial)
            state = network.sweep.forward(layers.in_time, network.step_sizes, trajectory)
            parts.append(self._point.W.T @ reading.features(chunk, state) + self._point.beta[:, None])
        split.check_finite(sum(float(part.sum()) for part in parts), network.step_sizes.max())
        return reading.gathered_scores(parts, self.readout.classes)

    def probabilities(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the probabilities of classes, or answers, in the shape of :meth:`scores`.

        Raises
        ------
        ValueError
            If the loss gives scores no such meaning, and as :meth:`scores` does.
        """
        return self._loss.probabilities(self.scores(inputs, projection))

    def predict(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the most probable class of each input, (n,), or node, (owned nodes, n).

        Of targets that are numbers: what is expected of them, in the shape of :meth:`scores`.
        """
        return self.decided(self.scores(inputs, projection))

    def decided(self, scores: np.ndarray) -> np.ndarray:
        """Return :meth:`predict` of inputs with given scores."""
        expected = self._loss.expected(scores)
        return expected.argmax(axis=0) if self._classes else expected

    def trajectory(
        self, inputs: Inputs | np.ndarray, number: int = 0, projection: NodalMap | None = None
    ) -> list[State]:
        """Return the states of one input at all times :math:`t_0, ..., t_N`.

        Parameters
        ----------
        number
            Of the input.
        """
        fields = Sample(inputs).inputs
        if not 0 <= number < len(fields):
            raise ValueError(f"There are inputs 0 to {len(fields) - 1}, received number={number!r}.")
        network, layers = self.network, self._point.layers
        sweep = network.sweep
        trajectory = sweep.trajectory(network.steps, sweep.image_block)
        x = nodal_map_for(network, fields, projection or self._projection).nodal(fields, number, number + 1)
        network.opening.open(layers, x, trajectory.initial)
        sweep.forward(layers.in_time, network.step_sizes, trajectory)
        return [
            State(float(t), tuple(self._functions(trajectory.complete(k)[0]))) for k, t in enumerate(network.times)]

    def _functions(self, state: np.ndarray) -> Iterator[Function]:
        for c in range(self.network.features):
            out = Function(self.network.space, name=f"Y{c}")
            out.dat.data[:] = state[:, c, 0]
            yield out


class Predicts(ABC):
    """Something trained: its predictions are those of its :attr:`prediction`."""

    @property
    @abstractmethod
    def prediction(self) -> Prediction:
        """What the trained network says of inputs."""

    def scores(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the scores of inputs; see :meth:`ctrlnet.objective.Prediction.scores`."""
        return self.prediction.scores(inputs, projection)

    def probabilities(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the probabilities of classes; see :meth:`ctrlnet.objective.Prediction.probabilities`."""
        return self.prediction.probabilities(inputs, projection)

    def predict(self, inputs: Inputs | np.ndarray, projection: NodalMap | None = None) -> np.ndarray:
        """Return the classes of inputs, or their numbers; see :meth:`ctrlnet.objective.Prediction.predict`."""
        return self.prediction.predict(inputs, projection)

    def trajectory(
        self, inputs: Inputs | np.ndarray, number: int = 0, projection: NodalMap | None = None
    ) -> list[State]:
        """Return the states of an input at all times; see :meth:`ctrlnet.objective.Prediction.trajectory`."""
        return self.prediction.trajectory(inputs, number, projection)
