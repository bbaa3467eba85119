r"""The average loss over images and over the meshes they are seen on: one network for every scale.

With one set of controls and one classifier in one readout space, level l gives the average loss :math:`J_l` of the
images on its own mesh. What is minimised is

.. math:: J(s, b, W, \beta) = \sum_l p_l J_l(s, b, W, \beta), \qquad \sum_l p_l = 1,

either as it stands, or estimated by drawing a level for every chunk of the sample
(:meth:`MultilevelAverage.drawn`) or for every mini-batch (:meth:`MultilevelAverage.over`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrlnet.sample_average import Features, SampleAverage

__all__ = ["MultilevelAverage"]


class MultilevelAverage:
    r"""Weighted mean of sample averages on several meshes, with the derivatives of a :class:`SampleAverage`.

    It takes the place of a :class:`SampleAverage` in a :class:`~ctrlnet.TrainingProblem`
    (:meth:`~ctrlnet.TrainingProblem.with_average`), and so in every reduced functional and optimiser.

    Parameters
    ----------
    averages
        One for each level, of networks with one control space and equally many steps, and readouts of one readout
        space. The first one is the level that the readout, the network and the sample are asked of.
    weights
        :math:`p_l`, positive; they are divided by their sum. Default: equal.
    rng
        Draws levels in :meth:`over`; the same on any number of ranks.

    Raises
    ------
    ValueError
        If there is no level, controls, steps, readouts, losses or counts of images differ, or a weight is not
        positive.
    """

    def __init__(
        self, averages: Sequence[SampleAverage], weights: Sequence[float] | None = None,
        rng: np.random.Generator | None = None,
    ):
        self.averages = list(averages)
        _check_levels(self.averages)
        weights = np.ones(len(self.averages)) if weights is None else np.asarray(weights, dtype=float)
        if weights.shape != (len(self.averages),) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(f"{len(self.averages)} levels need as many positive weights, received {weights}.")
        self.weights = weights / weights.sum()
        self._rng = rng
        self._batches: dict[int, SampleAverage] = {}

    readout = property(lambda self: self.averages[0].readout)
    network = property(lambda self: self.averages[0].network)
    sample = property(lambda self: self.averages[0].sample)
    loss = property(lambda self: self.averages[0].loss)
    work = property(lambda self: self.averages[0].work)
    comm = property(lambda self: self.averages[0].comm)
    ensemble = property(lambda self: self.averages[0].ensemble)

    # Drawing.

    def drawn(self, rng: np.random.Generator, chunk: int = 256) -> MultilevelAverage:
        """Return the objective with one level drawn for each chunk of the sample.

        Its expectation over draws is this one. It is a fixed functional: to draw anew, call this again.

        Parameters
        ----------
        rng
            Draws the chunks and their levels; the same on any number of ranks.
        chunk
            Images of a chunk.

        Raises
        ------
        ValueError
            If a chunk holds no image.
        """
        if chunk < 1:
            raise ValueError(f"A chunk holds at least one image, received chunk={chunk!r}.")
        count = len(self.sample)
        order = rng.permutation(count)
        starts = range(0, count, chunk)
        levels = rng.choice(len(self.averages), size=len(starts), p=self.weights)
        averages, weights = [], []
        for level, average in enumerate(self.averages):
            parts = [order[k : k + chunk] for k, drawn in zip(starts, levels, strict=True) if drawn == level]
            if parts:
                chosen = np.sort(np.concatenate(parts))
                averages.append(average.over(chosen))
                weights.append(chosen.size)
        return _Drawn(averages, weights, self._rng)

    def over(self, chosen: np.ndarray, replacing: SampleAverage | None = None) -> SampleAverage:
        """Return the average over a mini-batch, the images of the given numbers, on one level drawn for it.

        ``replacing`` is there for the interface of :class:`SampleAverage`: the storage of a level's last batch is
        used again by its next one.

        Raises
        ------
        ValueError
            If there is no generator to draw with.
        """
        if self._rng is None:
            raise ValueError("Mini-batches draw a level each: build MultilevelAverage(averages, weights, rng).")
        level = int(self._rng.choice(len(self.averages), p=self.weights))
        self._batches[level] = self.averages[level].over(chosen, self._batches.get(level))
        return self._batches[level]

    # Values and derivatives.

    def _weighted(self):
        return zip(self.weights, self.averages, strict=True)

    def features(self, S: np.ndarray, b: np.ndarray, keep: bool = True) -> Features:
        """Return the features of this rank's images on all levels, their weights p_l / n."""
        parts, first = [], 0
        for p, average in self._weighted():
            part = average.features(S, b, keep)
            parts.append((part.values, part.labels, p * part.weights, first + part.numbers))
            first += len(average.sample)
        return Features(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))

    def value(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return J."""
        return sum(p * average.value(S, b, W, beta) for p, average in self._weighted())

    def gradient(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray, with_weights: bool = True):
        """Return the derivatives with respect to S, b, W and beta (the last two None without weights)."""
        parts = [average.gradient(S, b, W, beta, with_weights) for average in self.averages]
        return tuple(None if p[0] is None else self._mean(p) for p in zip(*parts, strict=True))

    def tangent(self, point, direction) -> float:
        """Return the derivative at ``point`` in ``direction``, both (S, b, W, beta)."""
        return sum(p * average.tangent(point, direction) for p, average in self._weighted())

    def hessian(self, point, direction):
        """Return the Hessian at ``point`` times ``direction``, both and the result (S, b, W, beta)."""
        parts = [average.hessian(point, direction) for average in self.averages]
        return tuple(self._mean(p) for p in zip(*parts, strict=True))

    def _mean(self, arrays) -> np.ndarray:
        return sum(p * a for p, a in zip(self.weights, arrays, strict=True))

    def accuracies(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> list[float]:
        """Return the share of correctly classified images on each level."""
        return [average.accuracy(S, b, W, beta) for average in self.averages]

    def accuracy(self, S: np.ndarray, b: np.ndarray, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the weighted mean of the levels' accuracies."""
        return float(self.weights @ self.accuracies(S, b, W, beta))


class _Drawn(MultilevelAverage):
    """Levels that hold different parts of one sample."""


def _check_levels(averages: Sequence[SampleAverage]) -> None:
    if not averages:
        raise ValueError("A multilevel average needs at least one level, received none.")
    first = averages[0]
    for number, other in enumerate(averages[1:], 1):
        same = {
            "control space": other.network.controls.s_space == first.network.controls.s_space,
            "number of steps": other.network.steps == first.network.steps,
            "readout space": other.readout.space is first.readout.space,
            "number of classes": other.readout.classes == first.readout.classes,
            "loss": other.loss == first.loss,
            "work counter": other.work is first.work,
        }
        differing = [what for what, agrees in same.items() if not agrees]
        if differing:
            raise ValueError(
                f"Levels 0 and {number} differ in their {', '.join(differing)}: one classifier and one set of controls "
                "serve all levels. Build the networks with Network.on(V) and the readouts with readout.on(network), "
                "and give all averages one Work()."
            )
