"""The objective as a function of s, b, W, beta together, or of some of them with the others held."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from firedrake import Function
from firedrake.adjoint import Control
from pyadjoint import AdjFloat, stop_annotating
from pyadjoint.enlisting import Enlist
from pyadjoint.reduced_functional import AbstractReducedFunctional

from ctrlnet.gauss_newton import GaussNewton
from ctrlnet.metric import NAMES
from ctrlnet.problem import SampleAverageBlock, TrainingProblem
from ctrlnet.sample_average import SampleAverage

__all__ = ["JointFunctional"]


class JointFunctional(AbstractReducedFunctional):
    """The joint objective of a training problem, with pyadjoint's interface and a Gauss-Newton product.

    Parameters
    ----------
    problem
        Network, sample, loss and regularisation.
    s, b, W, beta
        Controls; their values are the starting point.
    names
        The controls that are free, among ``("s", "b", "W", "beta")``; the others keep their values.
    riesz_map
        Inner product of the controls, as in :class:`pyadjoint.Control`.
    """

    def __init__(
        self, problem: TrainingProblem, s: Function, b: Function, W: Function, beta: Function,
        names: Sequence[str] = NAMES, riesz_map="L2",
    ):
        self.problem = problem
        self.names = tuple(n for n in NAMES if n in names)
        if not self.names or set(names) - set(NAMES):
            raise ValueError(f"Controls are named {', '.join(NAMES)}; received {list(names)!r}.")
        self._held = dict(zip(NAMES, (s, b, W, beta), strict=True))
        self._controls = Enlist([Control(self._held[n], riesz_map=riesz_map) for n in self.names])
        self._block = SampleAverageBlock(problem.average, (s, b, W, beta), problem.regularisation)
        self._sweeps = GaussNewton(problem.average)
        self._point = self.all_controls([self._held[n] for n in self.names])
        self.loss = float("nan")

    @property
    def controls(self):
        return self._controls

    def over(self, average: SampleAverage) -> JointFunctional:
        """Return the functional of another sample average, with the same regularisation."""
        out = copy.copy(self)
        out.problem = self.problem.with_average(average)
        out._block = SampleAverageBlock(average, list(self._held.values()), self.problem.regularisation)
        out._sweeps = GaussNewton(average)
        return out

    def all_controls(self, free: Sequence[Function]) -> list[Function]:
        """Return (s, b, W, beta) from the free ones."""
        return list((self._held | dict(zip(self.names, free, strict=True))).values())

    def __call__(self, values) -> AdjFloat:
        """Return the objective. Raises :class:`~ctrlnet.PropagationError` if a state is not finite."""
        with stop_annotating():
            # Seven times as fast as pyadjoint's copy, which a mini-batch notices.
            self._point = self.all_controls([f.copy(deepcopy=True) for f in Enlist(values)])
        value = self._block.value(self._point)
        self.loss = value - self._block.penalty(self._point)
        return AdjFloat(value)

    def derivative(self, adj_input: float = 1.0, apply_riesz: bool = False):
        """Return the derivative at the last evaluated controls, in the duals of the free controls' spaces."""
        gradient = self.problem.average.gradient(*self._block.arrays(self._point))
        return self._chosen(self._block.cofunctions(gradient, self._point, float(adj_input)), apply_riesz)

    def _direction(self, m_dot) -> list[Function | None]:
        free = dict(zip(self.names, Enlist(m_dot), strict=True))
        return [free.get(n) for n in NAMES]

    def _chosen(self, cofunctions, apply_riesz: bool):
        free = [g for n, g in zip(NAMES, cofunctions, strict=True) if n in self.names]
        if apply_riesz:
            free = [c.control._ad_convert_riesz(g, riesz_map=c.riesz_map)
                    for c, g in zip(self._controls, free, strict=True)]
        return self._controls.delist(free)

    def _product(self, product, m_dot, apply_riesz: bool):
        direction = self._direction(m_dot)
        change = product(self._block.arrays(self._point), self._block.arrays(direction))
        return self._chosen(self._block.cofunctions(change, direction), apply_riesz)

    def gauss_newton(self, m_dot, apply_riesz: bool = False):
        """Return the Gauss-Newton matrix, with the regularisation's Hessian, times a direction."""
        return self._product(self._sweeps.product, m_dot, apply_riesz)

    def hessian(self, m_dot, hessian_input=None, evaluate_tlm: bool = True, apply_riesz: bool = False):
        """Return the Hessian times a direction."""
        if hessian_input is not None:
            raise ValueError("JointFunctional.hessian takes no hessian_input: the functional is the last step.")
        return self._product(self.problem.average.hessian, m_dot, apply_riesz)

    def tlm(self, m_dot) -> float:
        """Return the derivative of the objective in a direction."""
        derivative = Enlist(self.derivative())
        return sum(d._ad_dot(g) for d, g in zip(Enlist(m_dot), derivative, strict=True))
