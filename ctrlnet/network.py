r"""A network: operators on a mesh, controls in time, dynamics, a time-stepping scheme and a lift."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from firedrake import Function, VectorFunctionSpace
from mpi4py import MPI

from ctrlnet.controls import ControlSpace
from ctrlnet.dynamics import Residual
from ctrlnet.integrators import ForwardEuler
from ctrlnet.operators import Operators

__all__ = ["Network"]


class Network:
    r"""The discrete map (s, b, Y(0)) -> Y(T) of one mesh and one number of layers.

    Because the controls multiply operators, the same (s, b) run on any mesh: :meth:`on` returns the network
    with its operators assembled there.

    Parameters
    ----------
    operators
        The :math:`D_j` on their space.
    controls
        The control space; its J must be ``len(operators)``.
    steps
        Number N of time steps (layers), independent of the control cells. Default: one a control cell.
    dynamics, integrator
        Right-hand side and scheme; a pair that has no sweep is refused.
    lift
        Weights (C,) of :math:`Y_c(0) = lift_c \cdot image`. Default: the first feature is the image.
    precision
        ``"double"`` or ``"single"`` storage and arithmetic of states; sums are double.

    Raises
    ------
    ValueError
        If the counts of operators or of learned parameters differ, steps < 1, or the lift has another length than C.
    """

    def __init__(
        self,
        operators: Operators,
        controls: ControlSpace,
        steps: int | None = None,
        dynamics=None,
        integrator=None,
        lift: np.ndarray | None = None,
        precision: str = "double",
    ):
        if len(operators) != controls.operators:
            raise ValueError(
                f"The control space was built for {controls.operators} operators, but {len(operators)} are given "
                f"({', '.join(operators.names)}). Build it as ControlSpace(T, cells, operators, features)."
            )
        steps = controls.cells if steps is None else steps
        if steps < 1:
            raise ValueError(f"A network needs at least one layer, received steps={steps!r}.")
        lift = np.eye(1, controls.features).ravel() if lift is None else np.asarray(lift, dtype=float)
        if lift.shape != (controls.features,):
            raise ValueError(
                f"The lift needs one weight a feature, shape ({controls.features},); received shape {lift.shape}."
            )
        self.operators = operators
        self.controls = controls
        self.steps = steps
        self.dynamics = Residual() if dynamics is None else dynamics
        self.integrator = ForwardEuler() if integrator is None else integrator
        self.lift = lift
        self.precision = precision
        self.sweep = self.integrator.sweep(self.dynamics, operators, controls.features, precision)
        learned = self.dynamics.parameters
        if controls.parameters != learned:
            raise ValueError(
                f"{type(self.dynamics).__name__} dynamics learn {learned} parameter(s) beside coefficients and biases, "
                f"the control space has {controls.parameters}. Build it as ControlSpace(..., parameters={learned})."
            )

    @property
    def features(self) -> int:
        return self.controls.features

    @property
    def space(self):
        return self.operators.space

    @property
    def comm(self) -> MPI.Comm:
        return self.operators.mesh.comm

    @cached_property
    def step_sizes(self) -> np.ndarray:
        return np.full(self.steps, self.controls.T / self.steps)

    @cached_property
    def sampling(self) -> np.ndarray:
        """Matrix that evaluates a control at each step's time."""
        return self.controls.sampling(self.integrator.control_times(self.controls.T, self.steps))

    def on(self, V) -> Network:
        """Return the same network on another space: operators rediscretised, controls unchanged."""
        return self._replaced(operators=self.operators.on(V))

    def with_depth(self, controls: ControlSpace | None = None, steps: int | None = None) -> Network:
        """Return the same network with another control space, another number of steps, or both."""
        return self._replaced(controls=controls or self.controls, steps=steps)

    def _replaced(self, **changes) -> Network:
        settings = dict(
            operators=self.operators, controls=self.controls, steps=self.steps, dynamics=self.dynamics,
            integrator=self.integrator, lift=self.lift, precision=self.precision,
        )
        return Network(**(settings | changes))

    def layers(self, s: Function, b: Function) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (N, J, C, C) and biases (N, C) of each layer, these with learned parameters."""
        return self.controls.s_layers(self.sampling, s), self.controls.b_layers(self.sampling, b)

    def state_space(self, images: int):
        """Return the space of C features for ``images`` images, image index fastest."""
        return VectorFunctionSpace(self.operators.mesh, self.space.ufl_element(), dim=self.features * images)

    def lift_images(self, nodal: np.ndarray, out: np.ndarray) -> None:
        """Write Y(0) = lift * image: nodal (owned, images) -> out (owned, C, images or more)."""
        lift = self.lift.astype(out.dtype)[:, None]
        np.multiply(lift, nodal[:, None, :], out=out[:, :, : nodal.shape[1]], casting="same_kind")
        out[:, :, nodal.shape[1] :] = 0.0
