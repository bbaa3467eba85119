"""Optimisers: the convex classifier problem, variable projection, and quasi-Newton through TAO."""

from ctrlnet.optimise.classifier import ClassifierProblem, InnerSolveError
from ctrlnet.optimise.history import History, Iteration
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.quasi_newton import QuasiNewton

__all__ = ["ClassifierProblem", "History", "InnerSolveError", "Iteration", "ProjectedFunctional", "QuasiNewton"]
