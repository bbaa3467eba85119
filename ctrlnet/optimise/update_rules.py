r"""First-order update rules on arrays: each maps a gradient to a step, and keeps its own memory.

A rule is plain data; ``start(size)`` returns a :class:`Step`, a function (gradient, learning rate) -> step to be added
to x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Adam", "GradientDescent", "Nesterov", "Step", "UpdateRule"]


class Step:
    """A running rule.

    Attributes
    ----------
    memory
        What it remembers of earlier gradients, by name; written to in place.
    """

    def __init__(self, memory: Mapping[str, np.ndarray]):
        self.memory = dict(memory)

    def __call__(self, g: np.ndarray, rate: float) -> np.ndarray:
        """Return the step for a gradient and a learning rate, and remember."""
        raise NotImplementedError


class UpdateRule(Protocol):
    """What the stochastic first-order loop needs of a rule."""

    name: str

    def start(self, size: int) -> Step: ...


@dataclass(frozen=True)
class GradientDescent:
    r"""Stochastic gradient descent, :math:`\Delta x = -\eta g` (Robbins and Monro, 1951)."""

    name = "SGD"

    def start(self, size: int) -> Step:
        return _Descent({})


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
        return _NesterovStep(self, {"velocity": np.zeros(size)})


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
        return _AdamStep(self, {"mean": np.zeros(size), "square": np.zeros(size), "count": np.zeros(1)})


class _Descent(Step):
    def __call__(self, g: np.ndarray, rate: float) -> np.ndarray:
        return -rate * g


class _NesterovStep(Step):
    def __init__(self, rule: Nesterov, memory: Mapping[str, np.ndarray]):
        super().__init__(memory)
        self._rule = rule

    def __call__(self, g: np.ndarray, rate: float) -> np.ndarray:
        velocity, momentum = self.memory["velocity"], self._rule.momentum
        velocity[:] = momentum * velocity - rate * g
        return momentum * velocity - rate * g


class _AdamStep(Step):
    def __init__(self, rule: Adam, memory: Mapping[str, np.ndarray]):
        super().__init__(memory)
        self._rule = rule

    def __call__(self, g: np.ndarray, rate: float) -> np.ndarray:
        rule, (mean, square, count) = self._rule, (self.memory[n] for n in ("mean", "square", "count"))
        count += 1
        mean[:] = rule.first * mean + (1 - rule.first) * g
        square[:] = rule.second * square + (1 - rule.second) * g * g
        unbiased = mean / (1 - rule.first ** count[0])
        return -rate * unbiased / (np.sqrt(square / (1 - rule.second ** count[0])) + rule.epsilon)
