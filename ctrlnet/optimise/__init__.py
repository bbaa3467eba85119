"""TAO, variable projection, drawn samples, first-order baselines, training of one level and of many."""

from ctrlnet.optimise.classifier.problem import ClassifierProblem
from ctrlnet.optimise.classifier.update import update_classifier
from ctrlnet.optimise.course import Limits
from ctrlnet.optimise.first_order import FirstOrder
from ctrlnet.optimise.functional import Functional
from ctrlnet.optimise.joint import JointFunctional
from ctrlnet.optimise.krylov import KrylovPreconditioner
from ctrlnet.optimise.projection import ProjectedFunctional
from ctrlnet.optimise.schur import SchurGaussNewton
from ctrlnet.optimise.stochastic import SampleSchedule, StochasticOptimiser
from ctrlnet.optimise.tao import TaoOptimiser
from ctrlnet.optimise.update_rules import Adam, GradientDescent, Nesterov
from ctrlnet.storage.history import History, Iteration

__all__ = [
    "Adam", "ClassifierProblem", "FirstOrder", "Functional", "GradientDescent", "History", "Iteration",
    "JointFunctional", "KrylovPreconditioner", "Limits", "Nesterov", "ProjectedFunctional", "SampleSchedule",
    "SchurGaussNewton", "StochasticOptimiser", "TaoOptimiser", "update_classifier",
]
