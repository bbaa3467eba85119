r"""Variable projection: the objective as a function of s, b alone, with the best classifier for each.

.. math:: J(\theta) = \min_{W,\beta} \Phi(\theta, W, \beta), \qquad \theta = (s, b)

The inner problem is convex; at its minimiser :math:`\partial_W \Phi = 0`, so that
:math:`J'(\theta) = \partial_\theta\Phi(\theta, W^*(\theta))` and
:math:`J'' = \Phi_{\theta\theta} - \Phi_{\theta W}\Phi_{WW}^{-1}\Phi_{W\theta}`.

Source: Golub and Pereyra, "Separable nonlinear least squares: the variable projection method", 2003.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from firedrake import Cofunction, Function
from firedrake.adjoint import Control
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist
from pyadjoint.reduced_functional import AbstractReducedFunctional

from ctrlnet.gauss_newton import GaussNewton
from ctrlnet.losses import image_hessians
from ctrlnet.optimise.classifier import ClassifierProblem, ClassifierSolution
from ctrlnet.problem import TrainingProblem
from ctrlnet.sample_average import SampleAverage

__all__ = ["ProjectedFunctional", "inner_tolerance_of"]


def inner_tolerance_of(problem: TrainingProblem) -> float:
    """Return the tolerance of inner solves that leaves the classifier no fewer digits than the states have."""
    return 1e-16 if problem.network.precision == "double" else 1e-8


class ProjectedFunctional(AbstractReducedFunctional):
    """The projected objective of a training problem, with pyadjoint's interface.

    Parameters
    ----------
    problem
        Network, sample, loss and regularisation. ``weights_size`` must be positive: it makes the inner
        problem strongly convex.
    s, b
        Controls; their values are the starting point.
    W, beta
        Start of the first inner solve. Later ones start from the classifier of the last one's scores.
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
        self, problem: TrainingProblem, s: Function, b: Function, W: Function | None = None,
        beta: Function | None = None, inner_tolerance: float | None = None, riesz_map="L2",
    ):
        if not problem.regularisation.ridge > 0:
            raise ValueError(
                "Variable projection needs a strongly convex inner problem: weights_size must be positive, "
                f"received {problem.regularisation.ridge!r}."
            )
        self.problem = problem
        self._controls = Enlist([Control(s, riesz_map=riesz_map), Control(b, riesz_map=riesz_map)])
        self._tolerance = inner_tolerance_of(problem) if inner_tolerance is None else inner_tolerance
        zero = problem.readout.functions()
        W, beta = W or zero[0], beta or zero[1]
        self._start = problem.readout.weights_array(W).copy(), beta.dat.data_ro.ravel().copy()
        self.solution: ClassifierSolution | None = None
        self._clock = [0.0]
        self._inner: ClassifierProblem | None = None
        self._point: tuple[Function, Function] = (s, b)
        self._derivative = None
        self._solver = None
        self._sweeps = GaussNewton(problem.average)

    names = ("s", "b")

    def over(self, average: SampleAverage, s: Function, b: Function) -> ProjectedFunctional:
        """Return the functional of another sample average, starting at (s, b) with this one's last classifier."""
        out = ProjectedFunctional(
            self.problem.with_average(average), s, b, inner_tolerance=self._tolerance,
            riesz_map=self._controls[0].riesz_map)
        out._start, out._inner, out._clock = self._start, self._inner, self._clock
        return out

    @property
    def controls(self):
        return self._controls

    @property
    def inner_seconds(self) -> float:
        """Time spent in inner solves, by this functional and those it was made from."""
        return self._clock[0]

    @property
    def loss(self) -> float:
        """The mean loss at the last evaluated controls."""
        self._require_point()
        return self.solution.loss

    def all_controls(self, free: Sequence[Function]) -> list[Function]:
        """Return (s, b, W, beta) with the classifier of the last evaluated controls."""
        return [*free, *self.classifier()]

    def __call__(self, values) -> AdjFloat:
        """Return J(s, b). Raises :class:`~ctrlnet.sample_average.PropagationError` if a state is not finite."""
        s, b = Enlist(values)
        self._point = (s._ad_copy(), b._ad_copy())
        self._derivative = self._solver = None
        average, regularisation = self.problem.average, self.problem.regularisation
        features = average.features(*self.problem.network.layers(s, b))
        began = time.perf_counter()
        inner, before = ClassifierProblem(
            features, regularisation.weights_matrix, regularisation.ridge, average.loss, average.comm,
            precision=self.problem.network.sweep.dtype), self._inner
        if self.solution is not None:
            start = inner.with_scores(self.solution.scores)
            inner.take_over(before)
        else:
            start, inner.inverse = self._start, None if before is None else before.inverse
        self.solution, self._inner = inner.solve(*start, tolerance=self._tolerance), inner
        self._start = self.solution.W, self.solution.beta
        self._clock[0] += time.perf_counter() - began
        return AdjFloat(self.solution.value + regularisation.controls_value(*self._point))

    def _cofunctions(self, gS: np.ndarray, gb: np.ndarray):
        net = self.problem.network
        return net.controls.s_cofunction(net.sampling, gS), net.controls.b_cofunction(net.sampling, gb)

    def _require_point(self) -> None:
        if self.solution is None:
            raise ValueError("Evaluate the functional before its derivative: call it with the controls first.")

    def derivative(self, adj_input: float = 1.0, apply_riesz: bool = False):
        """Return dJ in S* x B* at the last evaluated controls (S x B with ``apply_riesz``)."""
        self._require_point()
        if self._derivative is None:
            S, b = self.problem.network.layers(*self._point)
            gS, gb, _, _ = self.problem.average.gradient(
                S, b, self.solution.W, self.solution.beta, with_weights=False)
            self._derivative = self._regularised(self._cofunctions(gS, gb), self._point)
        out = []
        for total in self._derivative:
            out.append(total.copy(deepcopy=True))
            out[-1].dat.data[:] *= adj_input
        return self._delisted(out, apply_riesz)

    def _regularised(self, cofunctions, controls) -> list[Cofunction]:
        """Return the cofunctions with the regularisation's derivative at (s, b) added to them."""
        for total, part in zip(cofunctions, self.problem.regularisation.controls_derivative(*controls), strict=True):
            total.dat.data[:] += part.dat.data_ro
        return list(cofunctions)

    def _delisted(self, cofunctions: list[Cofunction], apply_riesz: bool):
        if apply_riesz:
            cofunctions = [c.control._ad_convert_riesz(g, riesz_map=c.riesz_map)
                           for c, g in zip(self._controls, cofunctions, strict=True)]
        return self._controls.delist(cofunctions)

    def hessian(self, m_dot, hessian_input=None, evaluate_tlm: bool = True, apply_riesz: bool = False):
        """Return the Hessian of J times a direction: the Schur complement of the joint Hessian.

        Costs two second-order sweeps and one solve with the classifier's Hessian.
        """
        self._require_point()
        if hessian_input is not None:
            raise ValueError("ProjectedFunctional.hessian takes no hessian_input: the functional is the last step.")
        ds, db = Enlist(m_dot)
        net, average = self.problem.network, self.problem.average
        W, beta = self.solution.W, self.solution.beta
        point = self.point()
        if self._solver is None:
            self._solver = self._inner.hessian_solver(W, beta)
        dS, dB = net.layers(ds, db)
        _, _, mixed_W, mixed_beta = average.hessian(point, (dS, dB, np.zeros_like(W), np.zeros_like(beta)))
        reaction = -self._solver(np.vstack([mixed_W, mixed_beta]))
        hS, hb, _, _ = average.hessian(point, (dS, dB, reaction[:-1], reaction[-1]))
        return self._delisted(self._regularised(self._cofunctions(hS, hb), (ds, db)), apply_riesz)

    def tlm(self, m_dot) -> float:
        """Return the derivative of J in a direction."""
        derivative = Enlist(self.derivative())
        return sum(d._ad_dot(g) for d, g in zip(Enlist(m_dot), derivative, strict=True))

    def point(self) -> tuple[np.ndarray, ...]:
        """Return the last evaluated controls and their classifier as arrays (S, b, W, beta)."""
        self._require_point()
        return (*self.problem.network.layers(*self._point), self.solution.W, self.solution.beta)

    def curvatures(self) -> np.ndarray:
        """Return the trace of each image's loss Hessian at the last evaluated controls, (n,), on every rank."""
        self._require_point()
        inner, average = self._inner, self.problem.average
        own = np.einsum("ikk->i", image_hessians(
            average.loss, self.solution.scores, inner.features.labels, np.ones(inner.features.labels.size)))
        out = np.zeros(len(average.sample))
        for numbers, values in average.comm.allgather((inner.features.numbers, own)):
            out[numbers] = values
        return out

    def gauss_newton(self, m_dot):
        """Return the Schur complement of the Gauss-Newton matrix times a direction, in S* x B*.

        One tangent sweep, one adjoint sweep and one solve with the classifier's Hessian.
        """
        ds, db = Enlist(m_dot)
        point = self.point()
        if self._solver is None:
            self._solver = self._inner.hessian_solver(point[2], point[3])
        parts = self._sweeps.projected_product(
            point, *self.problem.network.layers(ds, db), lambda mixed: -self._solver(mixed))
        return self._controls.delist(self._regularised(self._cofunctions(*parts), (ds, db)))

    def classifier(self) -> tuple[Function, Function]:
        """Return the best classifier (W, beta) at the last evaluated controls."""
        self._require_point()
        readout = self.problem.readout
        W, beta = readout.functions()
        readout.set_weights(W, self.solution.W)
        beta.dat.data[:] = self.solution.beta.reshape(beta.dat.data_ro.shape)
        return W, beta
