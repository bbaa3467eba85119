"""Optimisers: the convex classifier problem, variable projection, Newton and quasi-Newton through TAO."""

from ctrlnet.optimise.classifier import ClassifierProblem, InnerSolveError
from ctrlnet.optimise.classifier_update import update_classifier
from ctrlnet.optimise.course import Limits
from ctrlnet.optimise.first_order import FirstOrder
from ctrlnet.optimise.history import History, Iteration
from ctrlnet.optimise.joint import JointFunctional
from ctrlnet.optimise.krylov import KrylovPreconditioner
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.schur import SchurGaussNewton
from ctrlnet.optimise.stochastic import SampleSchedule, StochasticOptimiser
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.optimise.update_rules import Adam, GradientDescent, Nesterov

__all__ = [
    "Adam", "ClassifierProblem", "FirstOrder", "GradientDescent", "History", "InnerSolveError", "Iteration",
    "JointFunctional", "KrylovPreconditioner", "Limits", "Nesterov", "ProjectedFunctional", "SampleSchedule",
    "SchurGaussNewton", "StochasticOptimiser", "TaoOptimiser", "update_classifier",
]
