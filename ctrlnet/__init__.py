"""Residual networks as time-dependent PDEs, trained by PDE-constrained optimisation.

A network is ``dY/dt = sigma(sum_j s_j(t) D_j Y + b(t))`` on a finite-element mesh: see :class:`Network`,
:class:`TrainingProblem` and the demos.
"""

from ctrlnet.activations import Activation, identity, relu, smoothed_relu, tanh
from ctrlnet.adaptive_depth import AdaptiveDepth, DepthError, DepthEstimate, adapt_depth
from ctrlnet.controls import ControlSpace
from ctrlnet.dynamics import (
    Antisymmetric,
    Hamiltonian,
    Hyperbolic,
    Parabolic,
    ReactionDiffusion,
    Residual,
    UserDynamics,
)
from ctrlnet.failures import PropagationError, StageSolveError
from ctrlnet.integrators import (
    IMEX,
    BackwardEuler,
    ForwardEuler,
    ImplicitMidpoint,
    Irksome,
    RungeKutta,
    StoermerVerlet,
    Tableau,
)
from ctrlnet.losses import LeastSquares, SoftmaxCrossEntropy
from ctrlnet.multilevel_average import MultilevelAverage
from ctrlnet.multiscale import LevelResult, train_level, train_multiscale
from ctrlnet.network import Network
from ctrlnet.operators import (
    Operator,
    Operators,
    derivative,
    interior_stencil,
    laplacian,
    low_order_operators,
    second_derivative,
    stencil_operators,
)
from ctrlnet.problem import TrainingProblem
from ctrlnet.propagation import propagate
from ctrlnet.readout import Readout
from ctrlnet.results import write_results
from ctrlnet.sample import Sample
from ctrlnet.sample_average import SampleAverage
from ctrlnet.work import Work

__version__ = "0.1.0"

__all__ = [
    "IMEX", "Activation", "AdaptiveDepth", "Antisymmetric", "BackwardEuler", "ControlSpace", "DepthError",
    "DepthEstimate", "ForwardEuler", "Hamiltonian", "Hyperbolic", "ImplicitMidpoint", "Irksome", "LeastSquares",
    "LevelResult", "MultilevelAverage", "Network", "Operator", "Operators", "Parabolic", "PropagationError",
    "ReactionDiffusion", "Readout", "Residual", "RungeKutta", "Sample", "SampleAverage", "SoftmaxCrossEntropy",
    "StageSolveError", "StoermerVerlet", "Tableau", "TrainingProblem", "UserDynamics", "Work", "adapt_depth",
    "derivative", "identity", "interior_stencil", "laplacian", "low_order_operators", "propagate", "relu",
    "second_derivative", "smoothed_relu", "stencil_operators", "tanh", "train_level", "train_multiscale",
    "write_results",
]
