r"""First-order update rules on arrays: each maps a gradient to a step, and keeps its own memory.

A rule is plain data; ``start(size)`` returns a function (gradient, learning rate) -> step to be added to x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Adam", "GradientDescent", "Nesterov", "UpdateRule"]

Step = Callable[[np.ndarray, float], np.ndarray]


class UpdateRule(Protocol):
    """What the stochastic first-order loop needs of a rule."""

    name: str

    def start(self, size: int) -> Step: ...


@dataclass(frozen=True)
class GradientDescent:
    r"""Stochastic gradient descent, :math:`\Delta x = -\eta g` (Robbins and Monro, 1951)."""

    name = "SGD"

    def start(self, size: int) -> Step:
        return lambda g, rate: -rate * g


@dataclass(frozen=True)
class Nesterov:
    r"""Nesterov's momentum, :math:`v \leftarrow m v - \eta g,\; \Delta x = m v - \eta g`.

    In the form whose gradient is that of the current point (Sutskever et al., "On the importance of initialization
    and momentum in deep learning", 2013; Bengio et al., 2013).
    """

    momentum: float = 0.9
    name = "Nesterov"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), received {self.momentum!r}.")

    def start(self, size: int) -> Step:
        velocity = np.zeros(size)

        def step(g: np.ndarray, rate: float) -> np.ndarray:
            velocity[:] = self.momentum * velocity - rate * g
            return self.momentum * velocity - rate * g

        return step


@dataclass(frozen=True)
class Adam:
    r"""Adam: :math:`\Delta x = -\eta\,\hat m / (\sqrt{\hat v} + \epsilon)` with bias-corrected averages of g and g^2.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """

    first: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    name = "Adam"

    def __post_init__(self) -> None:
        if not (0 <= self.first < 1 and 0 <= self.second < 1 and self.epsilon > 0):
            raise ValueError(f"Adam needs first, second in [0, 1) and epsilon > 0, received {self!r}.")

    def start(self, size: int) -> Step:
        mean, square, count = np.zeros(size), np.zeros(size), [0]

        def step(g: np.ndarray, rate: float) -> np.ndarray:
            count[0] += 1
            mean[:] = self.first * mean + (1 - self.first) * g
            square[:] = self.second * square + (1 - self.second) * g * g
            unbiased = mean / (1 - self.first ** count[0])
            return -rate * unbiased / (np.sqrt(square / (1 - self.second ** count[0])) + self.epsilon)

        return step
