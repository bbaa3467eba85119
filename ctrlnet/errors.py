"""Failures of an evaluation at some controls; an optimiser handles them by a shorter step.

Wrong input is a ``ValueError`` and none of these.
"""

__all__ = ["EvaluationError", "InnerSolveError", "PropagationError", "StageSolveError"]


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
