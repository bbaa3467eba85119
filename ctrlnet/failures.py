"""Failures of a propagation that an optimiser handles by a shorter step."""

__all__ = ["PropagationError", "StageSolveError"]


class PropagationError(ArithmeticError):
    """The propagation left the range of floating point numbers (NaN or infinity).

    An optimiser can shrink its step; a user can take more layers, a shorter time or smaller controls.
    """


class StageSolveError(PropagationError):
    """The solver of an implicit step did not converge; the message says why and what to try."""
