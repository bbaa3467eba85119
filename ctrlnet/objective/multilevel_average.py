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
from mpi4py import MPI

from ctrlnet.fields.sample import Sample
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import Average
from ctrlnet.objective.sample_average import SampleAverage
from ctrlnet.objective.weighted import WeightedLinearisation

__all__ = ["DrawnAverage", "MultilevelAverage"]


class _Levels(Average):
    """A weighted sum of averages on several meshes; the first one is asked for what all of them share.

    Parameters
    ----------
    averages
        One a level.
    weights
        Their weights, which sum to one.
    sample
        The images that :meth:`over` chooses from.
    """

    def __init__(self, averages: Sequence[SampleAverage], weights: np.ndarray, sample: Sample):
        self.averages, self.weights, self.sample = list(averages), weights, sample
        first = self.averages[0]
        self.network, self.readout, self.ensemble = first.network, first.readout, first.ensemble
        self.loss, self.work = first.loss, first.work
        self._edges = np.cumsum([0, *(len(average.sample) for average in self.averages)])

    @property
    def comm(self) -> MPI.Comm:
        return self.averages[0].comm

    @property
    def count(self) -> int:
        return int(self._edges[-1])

    @property
    def generators(self) -> list[np.random.Generator]:
        return [rng for average in self.averages for rng in average.generators]

    def at(self, layers: LayerControls) -> WeightedLinearisation:
        return WeightedLinearisation(
            layers, self.weights, [average.at(layers) for average in self.averages], self._edges[:-1])

    def among(self, images: np.ndarray, replacing: DrawnAverage | None = None) -> DrawnAverage:
        levels = np.searchsorted(self._edges, images, side="right") - 1
        earlier = {} if replacing is None else replacing.on_level
        parts = {
            int(level): self.averages[level].over(images[levels == level] - self._edges[level], earlier.get(int(level)))
            for level in np.unique(levels)
        }
        return DrawnAverage(parts, self.sample)

    def scores(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> np.ndarray:
        return np.concatenate([average.scores(layers, W, beta) for average in self.averages], axis=1)

    def accuracies(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> list[float]:
        """Return the share of correctly classified images on each level."""
        return [average.accuracy(layers, W, beta) for average in self.averages]

    def accuracy(self, layers: LayerControls, W: np.ndarray, beta: np.ndarray) -> float:
        """Return the weighted mean of the levels' accuracies."""
        return float(self.weights @ self.accuracies(layers, W, beta))


class MultilevelAverage(_Levels):
    r"""Weighted mean of sample averages on several meshes, an :class:`~ctrlnet.objective.average.Average` itself.

    It takes the place of a :class:`SampleAverage` in a :class:`~ctrlnet.TrainingProblem`
    (:meth:`~ctrlnet.TrainingProblem.with_average`), and so in every functional and optimiser.

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
        _check_levels(averages)
        p = np.ones(len(averages)) if weights is None else np.asarray(weights, dtype=float)
        if p.shape != (len(averages),) or not (np.isfinite(p).all() and (p > 0).all()):
            raise ValueError(f"{len(averages)} levels need as many positive weights, received {p}.")
        super().__init__(averages, p / p.sum(), averages[0].sample)
        self._rng = rng
        self._batches: dict[int, SampleAverage] = {}

    @property
    def generators(self) -> list[np.random.Generator]:
        return [*([] if self._rng is None else [self._rng]), *super().generators]

    # Drawing.

    def drawn(self, rng: np.random.Generator, chunk: int = 256) -> DrawnAverage:
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
        level_of = np.empty(count, dtype=int)
        for start, level in zip(starts, levels, strict=True):
            level_of[order[start : start + chunk]] = level
        parts = {int(k): self.averages[k].over(np.flatnonzero(level_of == k)) for k in np.unique(levels)}
        return DrawnAverage(parts, self.sample, level_of)

    def over(self, chosen: np.ndarray, replacing: Average | None = None) -> SampleAverage:
        """Return the average over a mini-batch, the images of the given numbers, on one level drawn for it.

        The storage of a level's last batch is used again by its next one, whether or not it is ``replacing``.

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


class DrawnAverage(_Levels):
    """The mean over images each of which is seen on one of several levels, all with the same weight.

    Parameters
    ----------
    on_level
        The average over the images of each level that has any, by the level's number.
    sample
        All images.
    level_of
        The level of each image of the sample, whose images are those of the levels, in their order. Default: unknown,
        for a mean of which no parts are asked.
    """

    def __init__(self, on_level: dict[int, SampleAverage], sample: Sample, level_of: np.ndarray | None = None):
        counts = np.array([len(average.sample) for average in on_level.values()])
        super().__init__(list(on_level.values()), counts / counts.sum(), sample)
        self.on_level, self._level_of = on_level, level_of

    def over(self, chosen: np.ndarray, replacing: DrawnAverage | None = None) -> DrawnAverage:
        """Return the mean over the images of the given numbers, each on the level that was drawn for it."""
        earlier = {} if replacing is None else replacing.on_level
        level_of, parts = self._level_of[chosen], {}
        for level in np.unique(level_of):
            place = np.cumsum(self._level_of == level) - 1  # of an image of this level among them
            parts[int(level)] = self.on_level[int(level)].over(
                place[chosen[level_of == level]], earlier.get(int(level)))
        return DrawnAverage(parts, self.sample.chosen(chosen), level_of)


def _check_levels(averages: Sequence[SampleAverage]) -> None:
    if not averages:
        raise ValueError("A multilevel average needs at least one level, received none.")
    first = averages[0]
    for number, other in enumerate(averages[1:], 1):
        same = {
            "control space": other.network.control_space.s_space == first.network.control_space.s_space,
            "steps": np.array_equal(other.network.times, first.network.times),
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
