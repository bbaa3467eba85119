"""Failures of an evaluation at some controls; an optimiser handles them by a shorter step.

Wrong input is a ``ValueError`` and none of these.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NoReturn, Self

__all__ = ["EvaluationError", "InnerSolveError", "NotPickled", "PropagationError", "StageSolveError", "finite"]


def finite(*values: Any) -> bool:
    """Whether all values are real numbers, neither infinite nor NaN; what is no number at all is none."""
    return all(isinstance(value, Real) and math.isfinite(value) for value in values)


class NotPickled:
    """What holds meshes and compiled code: a shallow copy shares them, and a pickle or a deep copy is refused."""

    def __copy__(self) -> Self:
        out = object.__new__(type(self))
        out.__dict__.update(self.__dict__)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.__reduce_ex__(2)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} objects hold meshes and compiled code and can neither be pickled nor deep-copied. "
            "To keep what was trained, write it by ctrlnet.save(path, problem, controls) and read it by "
            "ctrlnet.load(path); to have another one, build it anew.")


class EvaluationError(ArithmeticError):
    """An objective or its derivative has no value at the controls given; smaller ones may have."""


class PropagationError(EvaluationError):
    """The propagation left the range of floating point numbers (NaN or infinity).

    An optimiser can shrink its step; a user can take more layers, a shorter time or smaller controls.
    """


class StageSolveError(PropagationError):
    """The solver of an implicit step did not converge; the message says why and what to try."""


class InnerSolveError(EvaluationError):
    """The classifier's Newton iteration did not reach its tolerance."""
