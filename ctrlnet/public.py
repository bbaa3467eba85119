"""The public names of ctrlnet, each from its room; ``import ctrlnet`` gives them."""

from ctrlnet.adapt import AdaptiveDepth, DepthError, DepthEstimate, adapt_depth
from ctrlnet.controls import Controls, ControlSet, ControlSpace
from ctrlnet.dynamics import (
    Antisymmetric,
    Diffusion,
    Dynamics,
    Hamiltonian,
    Hyperbolic,
    Parabolic,
    ReactionDiffusion,
    Residual,
    UserDynamics,
)
from ctrlnet.dynamics.activations import Activation, identity, relu, smoothed_relu, tanh
from ctrlnet.errors import EvaluationError, InnerSolveError, PropagationError, StageSolveError
from ctrlnet.fields import Sample
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
from ctrlnet.network import FixedOpening, LearnedOpening, Network, propagate
from ctrlnet.objective import (
    LeastSquares,
    Logistic,
    MultilevelAverage,
    NodalReadout,
    Readout,
    SampleAverage,
    SoftmaxCrossEntropy,
    TrainingProblem,
    Work,
)
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
from ctrlnet.optimise.multiscale import train_multiscale
from ctrlnet.optimise.training import LevelResult, train_level
from ctrlnet.report import write_results
from ctrlnet.storage import Trained, load, load_controls, save

__all__ = [
    "Activation", "AdaptiveDepth", "Antisymmetric", "BackwardEuler", "ControlSet", "ControlSpace", "Controls",
    "DepthError", "DepthEstimate", "Diffusion", "Dynamics", "EvaluationError", "FixedOpening", "ForwardEuler",
    "Hamiltonian", "Hyperbolic", "IMEX", "ImplicitMidpoint", "InnerSolveError", "Irksome", "LearnedOpening",
    "LeastSquares", "LevelResult", "Logistic", "MultilevelAverage", "Network", "NodalReadout", "Operator", "Operators",
    "Parabolic", "PropagationError", "ReactionDiffusion", "Readout", "Residual", "RungeKutta", "Sample",
    "SampleAverage", "SoftmaxCrossEntropy", "StageSolveError", "StoermerVerlet", "Tableau", "Trained",
    "TrainingProblem", "UserDynamics", "Work", "adapt_depth", "derivative", "identity", "interior_stencil", "laplacian",
    "load", "load_controls", "low_order_operators", "propagate", "relu", "save", "second_derivative", "smoothed_relu",
    "stencil_operators", "tanh", "train_level", "train_multiscale", "write_results",
]
