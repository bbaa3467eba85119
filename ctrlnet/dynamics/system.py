"""What right-hand sides share."""

from __future__ import annotations

from ctrlnet.kernels.program import State, StepSize

__all__ = ["Dynamics", "PartitionedDynamics"]


class Dynamics:
    """A right-hand side as a formula on fields: K, its adjoint, the activation, diffusion.

    Attributes
    ----------
    parts
        Fields of the state: 1, or 2 for a system with velocities, which start at zero.
    parameters
        Functions of time that are learned beside coefficients and biases.
    step_size
        The symbol h for formulae of steps.
    """

    parts = 1
    parameters = 0
    step_size = StepSize()

    def rate(self, program, stage: int, state: State) -> State:
        """Return dY/dt of a state with the controls of a stage."""
        raise NotImplementedError


class PartitionedDynamics(Dynamics):
    """A system of two halves, each with a rate that depends on the other half alone."""

    def position_rate(self, program, stage: int, state: State) -> State:
        """Return the rate of the first half; zero for the second."""
        raise NotImplementedError

    def momentum_rate(self, program, stage: int, state: State) -> State:
        """Return the rate of the second half; zero for the first."""
        raise NotImplementedError

    def rate(self, program, stage: int, state: State) -> State:
        return self.position_rate(program, stage, state) + self.momentum_rate(program, stage, state)
