r"""Explicit Runge-Kutta schemes from tableaux."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Formula, Language, State, sum_of
from ctrlnet.integrators.base import FormulaScheme

__all__ = ["RungeKutta", "Tableau", "heun", "midpoint", "rk4", "ssp3"]


@dataclass(frozen=True)
class Tableau:
    r"""A Butcher tableau of an explicit scheme, :math:`k_i = f(t + c_i h, Y + h\sum_{j<i} a_{ij}k_j)`.

    Parameters
    ----------
    name
        For messages and results.
    a
        Rows i = 2..m of the lower triangle: row i has i - 1 numbers.
    b
        Weights (m,).
    order
        The declared order, 1 to 4; its conditions are checked.

    Raises
    ------
    ValueError
        If the shapes do not fit or an order condition does not hold.

    Source: Butcher, "Numerical methods for ordinary differential equations", 2016.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    matrix: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        stages = len(self.b)
        if [len(row) for row in self.a] != list(range(1, stages)):
            raise ValueError(
                f"Tableau {self.name!r} has {stages} weights, so its rows must have 1 to {stages - 1} numbers; "
                f"received rows of {[len(row) for row in self.a]}."
            )
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"Tableau {self.name!r} declares order {self.order!r}; conditions are known for 1 to 4.")
        A = np.zeros((stages, stages))
        for i, row in enumerate(self.a, 1):
            A[i, :i] = row
        object.__setattr__(self, "matrix", A)
        b, c = np.array(self.b), A.sum(axis=1)
        conditions: dict[int, list[tuple[float, float]]] = {
            1: [(b.sum(), 1)],
            2: [(b @ c, 1 / 2)],
            3: [(b @ c**2, 1 / 3), (b @ A @ c, 1 / 6)],
            4: [(b @ c**3, 1 / 4), (b @ (c * (A @ c)), 1 / 8), (b @ A @ c**2, 1 / 12), (b @ A @ A @ c, 1 / 24)],
        }
        for order in range(1, self.order + 1):
            for found, needed in conditions[order]:
                if abs(found - needed) > 1e-12:
                    raise ValueError(
                        f"Tableau {self.name!r} declares order {self.order}, but a condition of order {order} gives "
                        f"{found:.6g} instead of {needed:.6g}."
                    )
        if c.min() < 0 or c.max() > 1:
            raise ValueError(f"Tableau {self.name!r} has nodes {c}; controls exist within the step, 0 to 1.")

    @property
    def nodes(self) -> tuple[float, ...]:
        """The c_i, row sums of a."""
        return tuple(self.matrix.sum(axis=1))


midpoint = Tableau("midpoint", ((1 / 2,),), (0.0, 1.0), 2)
heun = Tableau("heun", ((1.0,),), (1 / 2, 1 / 2), 2)
ssp3 = Tableau("ssp3", ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3)
rk4 = Tableau("rk4", ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)


@dataclass(frozen=True)
class RungeKutta(FormulaScheme):
    r""":math:`Y_{k+1} = Y_k + h\sum_i b_i k_i`: explicit, for any dynamics.

    Parameters
    ----------
    tableau
        ``rk4`` (default), ``ssp3``, ``heun``, ``midpoint``, or one of your own.
    """

    tableau: Tableau = rk4

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def nodes(self) -> tuple[float, ...]:
        return self.tableau.nodes

    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula; see :meth:`FormulaScheme.step`."""
        tableau, h = self.tableau, dynamics.step_size

        def step(language: Language, Y: State) -> State:
            slopes: list[State] = []
            for i, row in enumerate(((), *tableau.a)):
                stage = Y + h * sum_of(list(zip(row, slopes, strict=True)), dynamics.parts)
                slopes.append(dynamics.rate(language, i, stage))
            return Y + h * sum_of(list(zip(tableau.b, slopes, strict=True)), dynamics.parts)

        return step
