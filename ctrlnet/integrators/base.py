r"""What a time-stepping scheme is, and what those have in common whose step is a formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from ctrlnet.controls.spaces import BEFORE_JUMP
from ctrlnet.dynamics.system import Dynamics, RightHandSide
from ctrlnet.formulas.language import Formula
from ctrlnet.formulas.program import Program
from ctrlnet.kernels.engine import Engine, FormulaEngine, NewtonOptions
from ctrlnet.kernels.solves.diffusion import DiffusionOptions
from ctrlnet.operators.assembled import Operators

__all__ = ["FormulaScheme", "Integrator", "control_times", "step_formula"]


class Integrator(Protocol):
    r"""A one-step scheme :math:`Y_{k+1} = \Phi(Y_k; u(t_k + c_1 h), \dots, u(t_k + c_m h); h)`.

    Attributes
    ----------
    order
        Order of convergence in h where state and controls are smooth.
    nodes
        The c_i, in [0, 1].
    explicit
        Whether it applies the network explicitly, so that its steps have a bound of stability.
    """

    @property
    def order(self) -> int: ...

    @property
    def nodes(self) -> tuple[float, ...]: ...

    @property
    def explicit(self) -> bool: ...

    def control_times(self, times: np.ndarray) -> np.ndarray:
        """Return the times at which the steps between ``times`` (N + 1,) take their controls, (N * m,)."""

    def engine(self, dynamics: RightHandSide, operators: Operators, features: int, precision: str) -> Engine:
        """Return what makes the sweeps of this scheme for a right-hand side; nothing is compiled yet.

        Raises
        ------
        ValueError
            If the scheme needs what the dynamics have not got; the message names both.
        """


def control_times(nodes: tuple[float, ...], times: np.ndarray) -> np.ndarray:
    """Return the times t_k + c_i h_k of all steps, (N * m,), of the times t_0 to t_N of the states.

    A time at the end of a step is a little before it: where controls jump, a step sees their values within.
    """
    c = np.array(nodes)
    within = times[:-1, None] + np.diff(times)[:, None] * c
    return (within - np.where(c < 1, 0.0, BEFORE_JUMP * times[-1])).ravel()


class FormulaScheme(ABC):
    """A scheme whose step is a formula of the right-hand side's.

    Attributes
    ----------
    order, nodes, explicit
        See :class:`Integrator`.
    """

    @property
    @abstractmethod
    def order(self) -> int: ...

    @property
    def nodes(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def explicit(self) -> bool:
        return self.newton() is None

    def control_times(self, times: np.ndarray) -> np.ndarray:
        """Return the times at which the steps take their controls; see :func:`control_times`."""
        return control_times(self.nodes, times)

    @abstractmethod
    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula, (language, state) -> state.

        Raises
        ------
        ValueError
            If the scheme needs what the dynamics have not got.
        """

    def newton(self) -> NewtonOptions | None:
        """Return the options of the step's implicit stages, if it has any."""
        return None

    def diffusion(self) -> DiffusionOptions | None:
        """Return the options of the step's diffusion solves, if it has any."""
        return None

    def engine(self, dynamics: RightHandSide, operators: Operators, features: int, precision: str) -> Engine:
        """Return what makes the sweeps; see :meth:`Integrator.engine`."""
        formula = formula_of(self, dynamics)
        program = Program.of(self.step(formula), formula.parts, features, formula.parameters)
        return FormulaEngine(program, operators, precision, len(self.nodes), self.newton(), self.diffusion())


def step_formula(scheme: Integrator, dynamics: RightHandSide) -> Formula:
    """Return the step of a :class:`FormulaScheme`; raise a ValueError for another scheme, whose step is no formula."""
    step = getattr(scheme, "step", None)
    if step is None:
        raise ValueError(
            f"The step of {type(scheme).__name__} is no formula, and one is needed here. Take a scheme whose step "
            "is, such as ForwardEuler, RungeKutta, StoermerVerlet or IMEX.")
    return step(formula_of(scheme, dynamics))


def formula_of(scheme: Integrator, dynamics: RightHandSide) -> Dynamics:
    """Return dynamics that are a formula, or raise a ValueError that names what would go with them."""
    try:
        formula = dynamics.formula
    except AttributeError:
        raise ValueError(
            f"{type(scheme).__name__} has no sweep for {type(dynamics).__name__} dynamics: a right-hand side derives "
            "from ctrlnet.dynamics.system.Dynamics and gives its rate as a formula, or is a UFL form in UserDynamics."
        ) from None
    if formula is None:
        raise ValueError(
            f"{type(scheme).__name__} has no sweep for dynamics that are written as a UFL form; UserDynamics go with "
            "Irksome(tableau)."
        )
    return formula
