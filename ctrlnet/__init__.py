"""Residual networks as time-dependent PDEs, trained by PDE-constrained optimisation.

A network is ``dY/dt = sigma(sum_j s_j(t) D_j Y + b(t))`` on a finite-element mesh: see :class:`Network`,
:class:`TrainingProblem` and the demos.
"""

from ctrlnet.activations import Activation, identity, relu, smoothed_relu, tanh
from ctrlnet.controls import ControlSpace
from ctrlnet.dynamics import Residual
from ctrlnet.integrators import ForwardEuler
from ctrlnet.losses import LeastSquares, SoftmaxCrossEntropy
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
from ctrlnet.sample_average import PropagationError, SampleAverage
from ctrlnet.work import Work

__version__ = "0.1.0"

__all__ = [
    "Activation", "ControlSpace", "ForwardEuler", "LeastSquares", "LevelResult", "Network", "Operator", "Operators",
    "PropagationError", "Readout", "Residual", "Sample", "SampleAverage", "SoftmaxCrossEntropy", "TrainingProblem",
    "Work", "derivative", "identity", "interior_stencil", "laplacian", "low_order_operators", "propagate", "relu",
    "second_derivative", "smoothed_relu", "stencil_operators", "tanh", "train_level", "train_multiscale",
    "write_results",
]
