"""Value and derivative of a functional at the points that TAO asks for, one after another."""

from __future__ import annotations

import numpy as np
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Coordinates
from ctrlnet.errors import EvaluationError
from ctrlnet.optimise.course import Course
from ctrlnet.optimise.functional import Functional

__all__ = ["Evaluation"]


class Evaluation:
    """Value and derivative of the last point, in coordinates; large and flat where they are not finite."""

    def __init__(self, functional: Functional, coordinates: Coordinates, course: Course):
        self._functional, self._coordinates, self._journal = functional, coordinates, course.journal
        self.loss = np.nan
        self._x: np.ndarray | None = None
        self._value, self._failed = 0.0, False
        self._gradient: np.ndarray | None = None
        # Not infinite: TAO's line searches give up on an infinite trial value instead of shortening the step.
        self._penalty = 1e6
        self.least: tuple[float, np.ndarray | None] = (np.inf, None)

    def require(self, x: np.ndarray) -> None:
        self._evaluate(x)

    def _evaluate(self, x: np.ndarray) -> None:
        self._x, self._gradient, self._failed = None, None, False
        failure: list[EvaluationError] = []

        def computed() -> np.ndarray:
            try:
                return np.array([self._functional(self._coordinates.functions(x)), self._functional.loss], dtype=float)
            except EvaluationError as error:
                failure.append(error)
                return np.empty(0)

        found = self._journal.answer(computed)
        if not found.size:
            raise failure[0] if failure else EvaluationError("This point could not be evaluated before.")
        self._value, self.loss = map(float, found)
        self._penalty = self._value + 1.0 + abs(self._value)
        if self._value < self.least[0]:
            self.least = self._value, x.copy()
        self._x = x.copy()

    def value(self, x: np.ndarray) -> float:
        if self._x is not None and np.array_equal(x, self._x):
            return self._value
        try:
            self._evaluate(x)
        except EvaluationError:
            self._x, self._value, self._failed = x.copy(), self._penalty, True
        return self._value

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.value(x)
        if self._gradient is None:
            found = np.empty(0) if self._failed else self._journal.answer(self._derivative)
            if not found.size and not self._failed:
                self._value, self._failed = self._penalty, True
            self._gradient = found if found.size else np.zeros(x.size)
        return self._gradient

    def _derivative(self) -> np.ndarray:
        try:
            return self._coordinates.dual_array(Enlist(self._functional.derivative()))
        except EvaluationError:
            return np.empty(0)
