"""Linearisations of several means at the same controls, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import ImageRows, Linearisation
from ctrlnet.objective.columns import Features
from ctrlnet.objective.point import Point

__all__ = ["WeightedLinearisation"]


class WeightedLinearisation(Linearisation):
    r"""The sum :math:`\sum_l p_l J_l`, with the derivatives of its parts summed alike.

    Parameters
    ----------
    layers
        The controls in time.
    weights
        :math:`p_l`.
    parts
        Linearisations at these controls.
    firsts
        Number of the first image of each part among all images.
    """

    def __init__(
        self, layers: LayerControls, weights: Iterable[float], parts: Sequence[Linearisation], firsts: Iterable[int]
    ):
        self.layers = layers
        self._weights, self._parts, self._firsts = list(weights), list(parts), list(firsts)

    def _sum(self, values: Iterable):
        """Return the weighted sum of numbers, arrays or points, one a part."""
        weighted = (p * value for p, value in zip(self._weights, values, strict=True))
        total = next(weighted)
        for value in weighted:
            total = total + value
        return total

    def features(self, keep: bool = True) -> Features:
        found = [part.features(keep) for part in self._parts]
        return Features.together([
            part.reweighted(p, first)
            for p, first, part in zip(self._weights, self._firsts, found, strict=True)])

    def value(self, W: np.ndarray, beta: np.ndarray) -> float:
        return self._sum(part.value(W, beta) for part in self._parts)

    def gradient(self, W: np.ndarray, beta: np.ndarray) -> Point:
        return self._sum(part.gradient(W, beta) for part in self._parts)

    def layers_gradient(self, W: np.ndarray, beta: np.ndarray) -> LayerControls:
        return self._sum(part.layers_gradient(W, beta) for part in self._parts)

    def tangent(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> float:
        return self._sum(part.tangent(W, beta, direction) for part in self._parts)

    def hessian(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        return self._sum(part.hessian(W, beta, direction) for part in self._parts)

    def gauss_newton(self, W: np.ndarray, beta: np.ndarray, direction: Point) -> Point:
        return self._sum(part.gauss_newton(W, beta, direction) for part in self._parts)

    def coupling(
        self, W: np.ndarray, beta: np.ndarray, direction: LayerControls
    ) -> tuple[np.ndarray, Callable[[np.ndarray], LayerControls]]:
        halves = [part.coupling(W, beta, direction) for part in self._parts]
        mixed = self._sum(half for half, _ in halves)
        return mixed, lambda reaction: self._sum(complete(reaction) for _, complete in halves)

    @property
    def imagewise(self) -> ImageRows | None:
        each = [part.imagewise for part in self._parts]
        return None if None in each else _Rows(each, self._firsts, self._weights)


class _Rows(ImageRows):
    """The rows of all parts, one part after another."""

    def __init__(self, parts: Sequence[ImageRows], firsts: Sequence[int], shares: Sequence[float]):
        self._parts, self._firsts, self._shares = list(parts), list(firsts), list(shares)

    @property
    def targets(self) -> np.ndarray:
        return np.concatenate([part.targets for part in self._parts], axis=-1)

    @property
    def weights(self) -> np.ndarray:
        return np.concatenate([p * part.weights for p, part in zip(self._shares, self._parts, strict=True)])

    def features(self) -> np.ndarray:
        return np.concatenate([part.features() for part in self._parts], axis=1)

    def rows(self, W: np.ndarray, dscores: np.ndarray) -> LayerControls:
        shares = np.split(dscores, self._firsts[1:], axis=1)
        found = [part.rows(W, share) for part, share in zip(self._parts, shares, strict=True)]
        arrays = [np.concatenate(column, axis=-1) for column in zip(*(rows.arrays for rows in found), strict=True)]
        return found[0].of(*arrays)
