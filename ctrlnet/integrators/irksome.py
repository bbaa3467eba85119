r"""Runge-Kutta steps of Irksome for dynamics that a user writes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import ufl
from firedrake import Constant, Function, TestFunction
from ufl.core.expr import Expr

from ctrlnet.dynamics.system import RightHandSide
from ctrlnet.dynamics.user_defined import Layer, UserDynamics
from ctrlnet.integrators.base import control_times
from ctrlnet.integrators.layered_forms import on_layers
from ctrlnet.integrators.taped import StepSpaces, TapedEngine
from ctrlnet.operators.assembled import Operators

if TYPE_CHECKING:
    from irksome.tableaux.ButcherTableaux import ButcherTableau

__all__ = ["EXPLICIT", "IMPLICIT", "KRYLOV", "Irksome"]

# The mass alone; where it is lumped one iteration solves with it.
EXPLICIT = {
    "mat_type": "matfree", "snes_type": "ksponly", "ksp_type": "cg", "ksp_rtol": 1e-14, "ksp_atol": 1e-300,
    "pc_type": "jacobi",
}
# All images of a chunk are one system, whose matrix has a block for each. A direct solve: what the controls multiply
# is in general not definite, and Jacobi's preconditioner gives up where they grow.
IMPLICIT = {
    "snes_rtol": 1e-11, "snes_stol": 0.0, "snes_atol": 1e-13, "snes_max_it": 20, "snes_linesearch_type": "bt",
    "mat_type": "aij", "ksp_type": "preonly", "pc_type": "lu", "pc_factor_mat_solver_type": "mumps",
}
# For what is too large for that. The solves of the derivatives take the same options, hence the tolerance.
KRYLOV = {
    "mat_type": "matfree", "ksp_type": "gmres", "ksp_rtol": 1e-13, "ksp_atol": 1e-300, "ksp_max_it": 500,
    "ksp_gmres_restart": 100, "pc_type": "jacobi",
}


@dataclass(frozen=True)
class Irksome:
    r"""A Runge-Kutta scheme of Irksome's, :math:`U_i = Y_k + h\sum_j a_{ij}\dot U_j`, for :class:`UserDynamics`.

    The step is annotated natively by pyadjoint, once, and replayed; derivatives are those of the discrete scheme as
    far as its solves are exact: ``ksp_rtol``, where there is one, should be near round-off.

    Parameters
    ----------
    tableau
        For example ``irksome.GaussLegendre(2)``, ``irksome.RadauIIA(2)``, ``irksome.Alexander()``; its nodes in [0, 1].
    solver_parameters
        PETSc options over :data:`EXPLICIT` or :data:`IMPLICIT`, for the solves of a stage or of all stages together;
        for example :data:`KRYLOV`. With ``images=1`` and a mesh of a ``MeshHierarchy`` also multigrid.
    images
        How many are stepped together, as layers of an extruded mesh; 1 on the mesh itself, which may then be of any
        dimension.
    stage_type
        ``"explicit"``, ``"dirk"`` (one stage after the other) or ``"deriv"`` (all at once), see
        ``irksome.TimeStepper``. Default: the first that the tableau allows.

    Raises
    ------
    ValueError
        If the tableau is none of Irksome's, its nodes leave the step, the stage type is unknown, or there is no image.

    Source: Farrell, Kirby and Marchena-Menendez, "Irksome: automating Runge-Kutta time-stepping for finite element
    methods", ACM TOMS 2021.
    """

    tableau: ButcherTableau
    solver_parameters: Mapping = field(default_factory=dict)
    images: int = 64
    stage_type: str | None = None

    def __post_init__(self):
        # Imported where it is used: it extends UFL, and whoever has a tableau has done so.
        from irksome.tableaux.ButcherTableaux import ButcherTableau

        if not isinstance(self.tableau, ButcherTableau):
            raise ValueError(
                f"Irksome(tableau) takes one of Irksome's Butcher tableaux, such as irksome.GaussLegendre(2); received "
                f"{self.tableau!r}."
            )
        if self.nodes[0] < 0 or self.nodes[-1] > 1:
            raise ValueError(f"{self.tableau} has nodes {self.nodes}; controls exist within the step, 0 to 1.")
        if self.stage_type not in (None, "explicit", "dirk", "deriv"):
            raise ValueError(f"stage_type must be 'explicit', 'dirk' or 'deriv', received {self.stage_type!r}.")
        if self.images < 1:
            raise ValueError(f"At least one image is stepped at a time, received images={self.images!r}.")

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def nodes(self) -> tuple[float, ...]:
        """The different times in a step at which it takes the controls."""
        return tuple(float(c) for c in np.unique(np.round(self.tableau.c, 14)))

    @property
    def explicit(self) -> bool:
        return self.tableau.is_explicit

    def control_times(self, times: np.ndarray) -> np.ndarray:
        """Return the times at which the steps take their controls; see :func:`control_times`."""
        return control_times(self.nodes, times)

    def engine(self, dynamics: RightHandSide, operators: Operators, features: int, precision: str) -> TapedEngine:
        """Return what makes the sweeps; see :meth:`Integrator.engine`.

        Raises
        ------
        ValueError
            If the dynamics are built in, their form is not what is said in :class:`UserDynamics`, or the precision is
            single.
        """
        if dynamics.form is None:
            raise ValueError(
                f"Irksome steps dynamics written as a UFL form, UserDynamics(residual), and {dynamics.name} "
                "has none; the built-in dynamics have ForwardEuler, RungeKutta, IMEX, StoermerVerlet, BackwardEuler "
                "and ImplicitMidpoint."
            )
        if precision != "double":
            raise ValueError(f"Irksome's steps are in double precision; received precision {precision!r}.")
        plane = StepSpaces(operators, features, dynamics.parts, 1)
        equation = _Equation(dynamics.form, operators, self.nodes, plane)
        equation.check(plane if self.images == 1 else StepSpaces(operators, features, dynamics.parts, self.images))
        linear = {key: value for key, value in self._parameters.items() if not key.startswith("snes")}
        return TapedEngine(
            lambda *step: self._step(equation, *step), operators, features, dynamics.parts, self.images,
            len(self.nodes), f"Irksome's {self.tableau}", linear)

    @property
    def _kind(self) -> str:
        if self.stage_type is not None:
            return self.stage_type
        if self.tableau.is_explicit:
            return "explicit"
        return "dirk" if self.tableau.is_diagonally_implicit else "deriv"

    @property
    def _parameters(self) -> dict:
        return (EXPLICIT if self.tableau.is_explicit else IMPLICIT) | dict(self.solver_parameters)

    def _step(
        self, equation: _Equation, state: Function, s: Sequence[Function], b: Sequence[Function], h: Constant
    ) -> None:
        from irksome import TimeStepper
        from irksome.stage_derivative import StageDerivativeTimeStepper

        t = Constant(0.0)
        F = equation.residual(state, s, b, t / h)
        with warnings.catch_warnings():
            # Irksome assigns zeros of UFL, which pyadjoint does not know and need not know.
            warnings.filterwarnings("ignore", "Could not find overloaded class of type")
            stepper = TimeStepper(
                F, self.tableau, t, h, state, stage_type=self._kind, solver_parameters=dict(self._parameters))
            if isinstance(stepper, StageDerivativeTimeStepper) and equation.parts == 1:
                # Irksome's own goes through state.subfunctions, which Firedrake tapes as components here.
                weights = zip(self.tableau.b, stepper.stages.subfunctions, strict=True)
                stepper._update = lambda: state.assign(state + sum((float(w) * h) * k for w, k in weights))
            stepper.advance()


class _Equation:
    """The residual of user-written dynamics with controls that vary within a step."""

    def __init__(self, dynamics: UserDynamics, operators: Operators, nodes: Sequence[float], plane: StepSpaces):
        self._dynamics, self._operators, self._nodes, self._plane = dynamics, operators, nodes, plane
        self.parts = dynamics.parts

    def residual(self, state: Function, s: Sequence[Function], b: Sequence[Function], place: Expr) -> ufl.Form:
        r"""Return F; its controls are those of the stages at the nodes, and polynomials of the place in the step."""
        mesh, layered = self._operators.mesh, state.function_space().mesh().unique()
        if layered is mesh:
            return self._of_one(state, s, b, place)
        spaces = self._plane
        U, *controls = (Function(V) for V in (spaces.state, *[spaces.s] * len(s), *[spaces.b] * len(b)))
        F = self._of_one(U, controls[: len(s)], controls[len(s) :], place)
        if not isinstance(F, ufl.Form):
            return F
        places = dict(zip((U, *controls), (state, *s, *b), strict=True))
        return on_layers(
            F, mesh, layered, places | {TestFunction(spaces.state): TestFunction(state.function_space())})

    def _of_one(self, state: Function, s: Sequence[Function], b: Sequence[Function], place: Expr) -> ufl.Form:
        """Return F as the user writes it, for one image on the network's mesh."""
        layer = Layer(self._operators, _through(s, self._nodes, place), _through(b, self._nodes, place))
        v = TestFunction(state.function_space())
        if self.parts == 1:
            return self._dynamics.residual(state, v, layer)
        return self._dynamics.residual(ufl.split(state), ufl.split(v), layer)

    def check(self, spaces: StepSpaces) -> None:
        """Raise a ValueError if the residual is no form that can be stepped."""
        from irksome.ufl.deriv import TimeDerivative
        from ufl.algorithms.analysis import extract_type

        state = Function(spaces.state)
        s, b = ([Function(V) for _ in self._nodes] for V in (spaces.s, spaces.b))
        F = self.residual(state, s, b, Constant(0.0))
        name = getattr(self._dynamics.residual, "__name__", "residual")
        if not isinstance(F, ufl.Form):
            raise ValueError(f"{name} must return a UFL form, an integral with its measure; received {F!r:.200}.")
        arguments = F.arguments()
        if len(arguments) != 1 or arguments[0].function_space() != spaces.state:
            raise ValueError(
                f"{name} must be linear in its test function and have no other argument; its form has "
                f"{len(arguments)} argument(s)."
            )
        if not extract_type(F, TimeDerivative):
            raise ValueError(
                f"{name} has no time derivative: write the whole equation, for example inner(Dt(Y), v) * dx - ..., "
                "with irksome.Dt."
            )


def _through(values: Sequence[Function], nodes: Sequence[float], place: Expr) -> Expr:
    """Return the polynomial in time that takes the values at the nodes."""
    terms = []
    for i, (value, node) in enumerate(zip(values, nodes, strict=True)):
        weight = 1
        for j, other in enumerate(nodes):
            if j != i:
                weight = weight * (place - other) / (node - other)
        terms.append(weight * value)
    return sum(terms[1:], terms[0])
