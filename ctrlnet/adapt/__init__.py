"""Mesh and time steps from the network's own adjoint."""

from __future__ import annotations

from ctrlnet.adapt.cycles import Cycle
from ctrlnet.adapt.depth import AdaptiveDepth, DepthError, DepthEstimate, adapt_depth
from ctrlnet.adapt.estimate import ErrorEstimate, mesh_error, step_error
from ctrlnet.adapt.goals import Ending, Goal, MeanLoss, ScoreGap, StateIntegral
from ctrlnet.adapt.marking import largest_parts
from ctrlnet.adapt.training import AdaptedTraining, finer_mesh, finer_steps, train_adaptively

__all__ = [
    "AdaptedTraining", "AdaptiveDepth", "Cycle", "DepthError", "DepthEstimate", "Ending", "ErrorEstimate", "Goal",
    "MeanLoss", "ScoreGap", "StateIntegral", "adapt_depth", "finer_mesh", "finer_steps", "largest_parts", "mesh_error",
    "step_error", "train_adaptively",
]
