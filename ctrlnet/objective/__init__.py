"""What is minimised: readout, losses, regularisation, averages over samples and their linearisations."""

from ctrlnet.objective.average import Average, FeatureReadout, ImageRows, Linearisation
from ctrlnet.objective.losses import LeastSquares, Logistic, Loss, SoftmaxCrossEntropy
from ctrlnet.objective.multilevel_average import MultilevelAverage
from ctrlnet.objective.nodal_readout import NodalReadout
from ctrlnet.objective.objective import Objective
from ctrlnet.objective.point import Point
from ctrlnet.objective.prediction import Prediction, Predicts, State
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.objective.readout import Readout
from ctrlnet.objective.regularisation import Regularisation
from ctrlnet.objective.sample_average import SampleAverage
from ctrlnet.objective.work import Work

__all__ = [
    "Average", "FeatureReadout", "ImageRows", "LeastSquares", "Linearisation", "Logistic", "Loss", "MultilevelAverage",
    "NodalReadout", "Objective", "Point", "Prediction", "Predicts", "Readout", "Regularisation", "SampleAverage",
    "SoftmaxCrossEntropy", "State", "TrainingProblem", "Work",
]
