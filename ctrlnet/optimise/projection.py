r"""Variable projection: the objective as a function of the controls in time alone, with the best classifier for each.

.. math:: J(\theta) = \min_{W,\beta} \Phi(\theta, W, \beta), \qquad \theta = (s, b, \dots)

The inner problem is convex; at its minimiser :math:`\partial_W \Phi = 0`, so that
:math:`J'(\theta) = \partial_\theta\Phi(\theta, W^*(\theta))` and
:math:`J'' = \Phi_{\theta\theta} - \Phi_{\theta W}\Phi_{WW}^{-1}\Phi_{W\theta}`.

Source: Golub and Pereyra, "Separable nonlinear least squares: the variable projection method", 2003.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from firedrake import Cofunction, Function
from mpi4py import MPI
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, ControlsLike, as_controls
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.objective.average import Average, Linearisation
from ctrlnet.objective.columns import Features
from ctrlnet.objective.losses import image_hessians
from ctrlnet.objective.point import Point
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.optimise.classifier.preconditioner import Preconditioner
from ctrlnet.optimise.classifier.problem import ClassifierProblem, ClassifierSolution
from ctrlnet.optimise.functional import OfProblem
from ctrlnet.optimise.journal import Halves, State

__all__ = ["ProjectedFunctional", "inner_tolerance_of"]


def inner_tolerance_of(problem: TrainingProblem) -> float:
    """Return the tolerance of inner solves that leaves the classifier no fewer digits than the states have."""
    return 1e-16 if problem.network.precision == "double" else 1e-8


class ProjectedFunctional(OfProblem):
    """The projected objective of a training problem, with pyadjoint's interface.

    Parameters
    ----------
    problem
        Network, sample, loss and regularisation. ``weights_size`` must be positive: it makes the inner
        problem strongly convex.
    m
        Controls. The values of those in time are the starting point; a classifier among them is that of the first inner
        solve. Later ones start from the classifier of the last one's scores.
    inner_tolerance
        See :meth:`ClassifierProblem.solve`. Default: 1e-16, so that the classifier has the state's digits, whatever
        the number of ranks and the way it was solved for; 1e-8 for states in single precision.
    riesz_map
        Inner product of the controls, as in :class:`pyadjoint.Control`.

    Attributes
    ----------
    solution : ClassifierSolution
        The classifier at the last evaluated controls.
    """

    def __init__(
        self, problem: TrainingProblem, m: ControlsLike, inner_tolerance: float | None = None, riesz_map: str = "L2",
    ):
        if not problem.regularisation.ridge > 0:
            raise ValueError(
                "Variable projection needs a strongly convex inner problem: weights_size must be positive, "
                f"received {problem.regularisation.ridge!r}."
            )
        self._control_set, whole = problem.network.control_set, problem.with_classifier(m)
        super().__init__(problem, whole.restricted(self._control_set.names), riesz_map)
        self._tolerance = inner_tolerance_of(problem) if inner_tolerance is None else inner_tolerance
        W, beta = problem.readout.arrays(whole)
        self._start = W.copy(), beta.copy()
        self.solution: ClassifierSolution | None = None
        self._clock = [0.0]
        self._inner: ClassifierProblem | None = None
        self._inverse: Preconditioner | None = None  # of a solve before, where there is no inner problem yet
        self._point: dict[str, np.ndarray] = {}  # degrees of freedom of the last evaluated controls
        self._derivative: dict[str, np.ndarray] | None = None
        self._solver: Callable[[np.ndarray], np.ndarray] | None = None
        self._at: Linearisation | None = None  # that of the last evaluated controls

    def over(self, average: Average, m: ControlsLike) -> ProjectedFunctional:
        """Return the functional of another sample average, starting at m with this one's last classifier."""
        out = ProjectedFunctional(
            self.problem.with_average(average), m, inner_tolerance=self._tolerance,
            riesz_map=self._controls[0].riesz_map)
        out._start, out._clock = self._start, self._clock
        out._inverse = self._inverse if self._inner is None else self._inner.inverse
        return out

    # What a journal keeps.

    def state(self) -> Halves:
        if self.solution is None:
            return {}, {}
        found, inverse = self.solution, self._inverse if self._inner is None else self._inner.inverse
        shared = {
            "controls": self._point, "W": found.W, "beta": found.beta, "value": found.value, "loss": found.loss,
            "seconds": self._clock[0], "inverse": {} if inverse is None else inverse.state()}
        return shared, {"scores": found.scores}

    def restore(self, shared: State, own: State) -> None:
        if not shared:
            return
        W, beta = shared["W"], shared["beta"]
        self.solution = ClassifierSolution(
            W, beta, own.get("scores", np.empty((beta.size, 0))), shared["value"], shared["loss"], 0.0, 0, 0)
        self._start, self._point = (W, beta), dict(shared["controls"])
        self._clock[0] = max(self._clock[0], shared["seconds"])
        self._inverse = Preconditioner.restored(shared["inverse"]) if shared["inverse"] else None
        self._inner = self._at = self._derivative = self._solver = None

    def revive(self) -> None:
        if self.solution is None:
            return
        self._at = self.problem.average.at(self.problem.network.layers_of(self._point))
        self._inner = self._classifier_problem(self._at.features())
        self._inner.inverse = self._inverse
        if self.solution.scores.shape[1] != self._inner.features.values.shape[1]:  # those of other ranks
            scores = self.solution.W.T @ self._inner.features.values + self.solution.beta[:, None]
            self.solution = replace(self.solution, scores=scores)

    def _classifier_problem(self, features: Features) -> ClassifierProblem:
        average, regularisation = self.problem.average, self.problem.regularisation
        return ClassifierProblem(
            features, regularisation.weights_matrix, regularisation.ridge, average.loss, average.comm,
            precision=self.problem.network.sweep.dtype)

    @property
    def inner_seconds(self) -> float:
        """Time spent in inner solves, by this functional and those it was made from."""
        return self._clock[0]

    @property
    def loss(self) -> float:
        """The mean loss at the last evaluated controls."""
        self._require_point()
        return self.solution.loss

    def all_controls(self, free: Sequence[Function]) -> Controls:
        """Return all controls, with the classifier of the last evaluated ones."""
        return as_controls(free, self.names).extended(self.classifier())

    def __call__(self, values: Sequence[Function]) -> AdjFloat:
        """Return J. Raises :class:`~ctrlnet.PropagationError` if a state is not finite."""
        point = {name: values.copy() for name, values in self._control_set.arrays(Enlist(values)).items()}
        average, regularisation = self.problem.average, self.problem.regularisation
        at = average.at(self.problem.network.layers_of(point))
        features = at.features()
        began = time.perf_counter()
        inner, before = self._classifier_problem(features), self._inner
        if self.solution is not None and before is not None:
            start = inner.with_scores(self.solution.scores)
            inner.take_over(before)
        else:
            start, inner.inverse = self._start, self._inverse
        self.solution, self._inner = inner.solve(*start, tolerance=self._tolerance), inner
        self._start = self.solution.W, self.solution.beta
        self._point, self._at, self._derivative, self._solver = point, at, None, None
        self._clock[0] += time.perf_counter() - began
        return AdjFloat(self.scale * (self.solution.value + regularisation.value(self._point)))

    def _require_point(self) -> None:
        if self.solution is None:
            raise ValueError("Evaluate the functional before its derivative: call it with the controls first.")

    def derivative(self, adj_input: float = 1.0, apply_riesz: bool = False) -> list[Cofunction]:
        """Return dJ at the last evaluated controls, in the duals of their spaces (in these with ``apply_riesz``)."""
        self._require_point()
        if self._derivative is None:
            gradient = self._at.layers_gradient(self.solution.W, self.solution.beta)
            self._derivative = self._regularised(gradient, self._point)
        return self._cofunctions({n: adj_input * values for n, values in self._derivative.items()}, apply_riesz)

    def _regularised(self, derivative: LayerControls, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a derivative of the loss with the regularisation's, or its Hessian's product, added."""
        of_loss = self.problem.network.layers_adjoint(derivative)
        return {n: of_loss[n] + part for n, part in self.problem.regularisation.products(arrays).items()}

    def _cofunctions(self, arrays: Mapping[str, np.ndarray], apply_riesz: bool) -> list[Cofunction]:
        return self._returned(self._control_set.cofunctions(arrays), apply_riesz)

    def hessian(
        self, m_dot: Sequence[Function], hessian_input: None = None, evaluate_tlm: bool = True,
        apply_riesz: bool = False,
    ) -> list[Cofunction]:
        """Return the Hessian of J times a direction: the Schur complement of the joint Hessian.

        Costs two second-order sweeps and one solve with the classifier's Hessian.
        """
        self._require_point()
        self._refuse_input(hessian_input)
        direction, W, beta = self._control_set.arrays(Enlist(m_dot)), self.solution.W, self.solution.beta
        along = self.problem.network.layers_of(direction)
        mixed = self._at.hessian(W, beta, Point.in_layers(along, W, beta))
        reaction = -self._classifier_solver()(np.vstack([mixed.W, mixed.beta]))
        product = self._at.hessian(W, beta, Point(along, reaction[:-1], reaction[-1]))
        return self._cofunctions(self._regularised(product.layers, direction), apply_riesz)

    def _classifier_solver(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the inverse of the classifier's Hessian at the last evaluated controls, factorised once."""
        if self._solver is None:
            self._solver = self._inner.hessian_solver(self.solution.W, self.solution.beta)
        return self._solver

    def point(self) -> Point:
        """Return the last evaluated controls and their classifier as arrays."""
        self._require_point()
        return Point(self._at.layers, self.solution.W, self.solution.beta)

    def curvatures(self) -> np.ndarray:
        """Return the trace of the loss's Hessian of every image of the mean, (images,), weighted, on every rank."""
        self._require_point()
        features, average = self._inner.features, self.problem.average
        own = np.einsum("ikk->i", image_hessians(
            average.loss, self.solution.scores, features.targets, features.weights))
        out = np.bincount(features.numbers, own, minlength=average.count)
        average.comm.Allreduce(MPI.IN_PLACE, out)
        return out

    def gauss_newton(self, m_dot: Sequence[Function], apply_riesz: bool = False) -> list[Cofunction]:
        """Return the Schur complement of the Gauss-Newton matrix times a direction, in the duals of the spaces.

        One tangent sweep, one adjoint sweep and one solve with the classifier's Hessian.
        """
        self._require_point()
        direction, solve = self._control_set.arrays(Enlist(m_dot)), self._classifier_solver()
        product = self._at.projected_gauss_newton(
            self.solution.W, self.solution.beta, self.problem.network.layers_of(direction), lambda mixed: -solve(mixed))
        return self._cofunctions(self._regularised(product, direction), apply_riesz)

    def classifier(self) -> Controls:
        """Return the best classifier (W, beta) at the last evaluated controls."""
        self._require_point()
        return self.problem.readout.classifier(self.solution.W, self.solution.beta)
