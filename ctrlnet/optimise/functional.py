"""What an optimiser is given: a reduced functional with value, derivative and, for Newton's methods, products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from firedrake import Cofunction, Function
from firedrake.adjoint import Control
from mpi4py import MPI
from pyadjoint import AdjFloat, ReducedFunctional, Tape
from pyadjoint.enlisting import Enlist

from ctrlnet.controls import Controls, replicated
from ctrlnet.objective.average import Average
from ctrlnet.objective.point import Point
from ctrlnet.objective.problem import TrainingProblem
from ctrlnet.objective.work import Work
from ctrlnet.optimise.journal import Halves, State

__all__ = ["Functional", "OfProblem", "ProjectedOn"]


class Functional(Protocol):
    r"""A functional J of some controls m, in pyadjoint's words; products and derivatives are those at the last value.

    ``derivative`` is :math:`J'(m)`, ``hessian`` :math:`J''(m)\,d` and ``gauss_newton`` :math:`G(m)\,d` in the duals of
    the controls' spaces.

    Attributes
    ----------
    names
        Of the controls, among those of the problem.
    controls
        Their values are the starting point.
    problem
        Spaces, regularisation and average.
    loss
        The mean loss alone at the last evaluated controls.
    """

    problem: TrainingProblem
    names: tuple[str, ...]

    @property
    def controls(self) -> Sequence[Control]: ...

    @property
    def loss(self) -> float: ...

    @property
    def work(self) -> Work:
        """The counter of sweeps."""

    @property
    def comm(self) -> MPI.Comm:
        """All ranks: every value is the same on each of them."""

    @property
    def images(self) -> int:
        """Size of the sample that the objective is the average over."""

    def __call__(self, values: Sequence[Function]) -> float:
        """Return J. Raises :class:`~ctrlnet.EvaluationError` where it has no value."""

    def derivative(self, adj_input: float = 1.0, apply_riesz: bool = False) -> Sequence[Cofunction]: ...

    def gauss_newton(self, m_dot: Sequence[Function], apply_riesz: bool = False) -> Sequence[Cofunction]: ...

    def hessian(self, m_dot: Sequence[Function], *, apply_riesz: bool = False) -> Sequence[Cofunction]: ...

    def all_controls(self, free: Sequence[Function]) -> Controls:
        """Return all controls of the problem, with the given values of :attr:`controls`."""

    def state(self) -> Halves:
        """Return what the next value and derivative depend on; see :class:`~ctrlnet.optimise.journal.Resumable`."""

    def restore(self, shared: State, own: State) -> None:
        """Go back to a state."""

    def revive(self) -> None:
        """Propagate what was propagated in that state."""


class ProjectedOn(Functional, Protocol):
    """A functional of the controls in time alone, with the best classifier for each."""

    def point(self) -> Point:
        """Return the last evaluated controls and their classifier as arrays."""

    def curvatures(self) -> np.ndarray:
        """Return the trace of the loss's Hessian of every image of the mean, (images,), weighted, on every rank."""

    def over(self, average: Average, m: Controls) -> ProjectedOn:
        """Return the functional of another average, starting at m with this one's last classifier."""


class OfProblem(ReducedFunctional):
    """What the functionals of a training problem share of pyadjoint's interface and of :class:`Functional`.

    Parameters
    ----------
    problem
        Network, sample, loss and regularisation.
    m
        The controls that are free; their values are the starting point.
    riesz_map
        Inner product of the controls, as in :class:`pyadjoint.Control`.

    Attributes
    ----------
    scale : float
        Factor of values and derivatives, which pyadjoint's ``minimize`` and ``maximize`` set.
    """

    problem: TrainingProblem

    def __init__(self, problem: TrainingProblem, m: Controls, riesz_map: str):
        self.problem, self.names = problem, m.names
        problem.check_same_on_all_ranks(m)
        controls = [Control(replicated(c, self.comm), riesz_map=riesz_map) for c in m]
        super().__init__(AdjFloat(0.0), controls, tape=Tape())  # nothing is ever on the tape: the value is computed

    @property
    def work(self) -> Work:
        return self.problem.work

    @property
    def comm(self) -> MPI.Comm:
        return self.problem.average.comm

    @property
    def images(self) -> int:
        return len(self.problem.average.sample)

    def tlm(self, m_dot: Sequence[Function]) -> float:
        """Return the derivative of the functional in a direction."""
        derivative = Enlist(self.derivative())
        return sum(d._ad_dot(g) for d, g in zip(Enlist(m_dot), derivative, strict=True))

    def _returned(self, derivative: Sequence[Cofunction], apply_riesz: bool) -> list[Cofunction]:
        """Return a derivative, scaled, the way pyadjoint has it; with ``apply_riesz`` as Functions."""
        if self.scale != 1.0:
            derivative = [g._ad_mul(self.scale) for g in derivative]
        derivative = Controls(self.names, [replicated(g, self.comm) for g in derivative])  # by name, too
        if apply_riesz:
            derivative = [c.control._ad_convert_riesz(g, riesz_map=c.riesz_map)
                          for c, g in zip(self._controls, derivative, strict=True)]
        return self._controls.delist(derivative)

    def _refuse_input(self, hessian_input: None) -> None:
        if hessian_input is not None:
            raise ValueError(
                f"{type(self).__name__}.hessian takes no hessian_input: the functional is the last step.")
