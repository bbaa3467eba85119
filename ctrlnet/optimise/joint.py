"""The objective as a function of all controls together, or of some of them with the others held."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from firedrake import Cofunction, Function
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, ControlsLike, as_controls
from ctrlnet.objective.average import Average
from ctrlnet.objective.objective import Objective, ObjectiveAt
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.optimise.functional import OfProblem
from ctrlnet.optimise.journal import Halves, State

__all__ = ["JointFunctional"]


class JointFunctional(OfProblem):
    """The joint objective of a training problem, with pyadjoint's interface and a Gauss-Newton product.

    Parameters
    ----------
    problem
        Network, sample, loss and regularisation.
    m
        All controls; their values are the starting point.
    names
        The controls that are free; the others keep their values. Default: all.
    riesz_map
        Inner product of the controls, as in :class:`pyadjoint.Control`.
    """

    def __init__(
        self, problem: TrainingProblem, m: ControlsLike, names: Sequence[str] | None = None, riesz_map: str = "L2",
    ):
        control_set = problem.control_set
        free = control_set.names if names is None else control_set.restricted(names).names
        self._held = control_set.controls(m)
        super().__init__(problem, self._held.restricted(free), riesz_map)
        self._objective = Objective(problem.average, problem.regularisation)
        self._last: ObjectiveAt | None = None
        self._point: Controls | None = None  # last evaluated

    @property
    def loss(self) -> float:
        return float("nan") if self._last is None else self._last.loss

    def over(self, average: Average) -> JointFunctional:
        """Return the functional of another sample average, with the same regularisation."""
        out = copy.copy(self)
        out.problem = self.problem.with_average(average)
        out._objective, out._last, out._point = Objective(average, self.problem.regularisation), None, None
        return out

    def all_controls(self, free: Sequence[Function]) -> Controls:
        """Return all controls from the free ones."""
        return self._held.replace(**as_controls(free, self.names).by_name())

    def __call__(self, values: Sequence[Function]) -> AdjFloat:
        """Return the objective. Raises :class:`~ctrlnet.PropagationError` if a state is not finite."""
        self._point = self.all_controls(Enlist(values))
        self._last = self._objective.at(self._point)
        return AdjFloat(self.scale * self._last.value())

    def state(self) -> Halves:
        return ({} if self._point is None else {"controls": self.problem.control_set.arrays(self._point)}), {}

    def restore(self, shared: State, own: State) -> None:
        if "controls" in shared:
            self._point = self.problem.control_set.functions(shared["controls"])

    def revive(self) -> None:
        if self._point is not None:
            self._last = self._objective.at(self._point)
            self._last.value()

    @property
    def _at(self) -> ObjectiveAt:
        """The objective at the last evaluated controls; before the first, at those that the functional starts from."""
        if self._last is None:
            self._last = self._objective.at(self._held)
        return self._last

    def derivative(self, adj_input: float = 1.0, apply_riesz: bool = False) -> list[Cofunction]:
        """Return the derivative at the last evaluated controls, in the duals of the free controls' spaces."""
        return self._chosen(self._at.derivative(float(adj_input)), apply_riesz)

    def _direction(self, m_dot) -> list[Function | None]:
        free = as_controls(Enlist(m_dot), self.names).by_name()
        return [free.get(n) for n in self._held.names]

    def _chosen(self, derivative: Controls, apply_riesz: bool):
        return self._returned(derivative.restricted(self.names), apply_riesz)

    def gauss_newton(self, m_dot: Sequence[Function], apply_riesz: bool = False) -> list[Cofunction]:
        """Return the Gauss-Newton matrix, with the regularisation's Hessian, times a direction."""
        return self._chosen(self._at.gauss_newton(self._direction(m_dot)), apply_riesz)

    def hessian(
        self, m_dot: Sequence[Function], hessian_input: None = None, evaluate_tlm: bool = True,
        apply_riesz: bool = False,
    ) -> list[Cofunction]:
        """Return the Hessian times a direction."""
        self._refuse_input(hessian_input)
        return self._chosen(self._at.hessian(self._direction(m_dot)), apply_riesz)
