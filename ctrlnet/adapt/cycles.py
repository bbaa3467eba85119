"""The record of one cycle of a training with adaptation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cycle"]


@dataclass(frozen=True)
class Cycle:
    """What one cycle trained on, and what it came to; errors are estimates of the objective's, signed."""

    number: int
    nodes: int
    steps: int
    iterations: int
    objective: float
    mesh_error: float
    step_error: float
    seconds: float
    work: float
