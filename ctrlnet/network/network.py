r"""A network: operators on a mesh, controls in time, dynamics, a time-stepping scheme and an opening."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Integral

import numpy as np
from firedrake import VectorFunctionSpace
from firedrake.functionspaceimpl import WithGeometry
from mpi4py import MPI

from ctrlnet.controls import Controls, ControlSet, ControlsLike, ControlSpace, checked_times, divided
from ctrlnet.dynamics import Residual
from ctrlnet.dynamics.system import RightHandSide
from ctrlnet.errors import NotPickled
from ctrlnet.integrators import ForwardEuler
from ctrlnet.integrators.base import Integrator
from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import Sweep
from ctrlnet.network.opening import FixedOpening, Opening
from ctrlnet.operators.assembled import Operators

__all__ = ["Network"]


class Network(NotPickled):
    r"""The discrete map (m, x) -> Y(T) of one mesh and one number of layers, Y(0) = O x.

    Because the controls multiply operators, the same ones run on any mesh: :meth:`on` returns the network
    with its operators assembled there.

    Parameters
    ----------
    operators
        The :math:`D_j` on their space.
    control_space
        Spaces of the controls in time; their J must be ``len(operators)``.
    steps
        Number N of time steps (layers) of equal size, independent of the control cells; or the times
        :math:`0 = t_0 < \dots < t_N = T` of the states, (N + 1,). Default: one step a control cell.
    dynamics, integrator
        Right-hand side and scheme; a pair that has no sweep is refused.
    opening
        O, see :class:`~ctrlnet.network.Opening`. Default: the first feature is the one channel of a grey image.
    precision
        ``"double"`` or ``"single"`` storage and arithmetic of states; sums are double.

    Raises
    ------
    ValueError
        If the counts of operators or of learned parameters differ, steps < 1, times that do not run from 0 to T, or the
        opening has other features.

    Attributes
    ----------
    steps : int
        N.
    times
        Of the states, (N + 1,).
    depth
        N where the steps are of equal size, and else the times: what the argument ``steps`` takes.
    """

    def __init__(
        self,
        operators: Operators,
        control_space: ControlSpace,
        steps: int | Sequence[float] | np.ndarray | None = None,
        dynamics: RightHandSide | None = None,
        integrator: Integrator | None = None,
        opening: Opening | None = None,
        precision: str = "double",
    ):
        opening = FixedOpening.of_channels(control_space.features) if opening is None else opening
        if isinstance(opening, type) or not hasattr(opening, "open"):
            raise ValueError(f"An opening must be an object such as FixedOpening(matrix), received {opening!r}.")
        if opening.features != control_space.features:
            raise ValueError(
                f"The opening gives {opening.features} features, the controls have {control_space.features}; they must "
                "agree.")
        self.operators = operators
        self.dynamics = Residual() if dynamics is None else dynamics
        self.integrator = ForwardEuler() if integrator is None else integrator
        self.opening = opening
        for what, value, example in (
            ("An integrator", self.integrator, "ForwardEuler()"), ("Dynamics", self.dynamics, "Residual(tanh)")):
            if isinstance(value, type | str):  # what else is none is said by the engine, which knows what it needs
                raise ValueError(f"{what} must be an object such as {example}, received {value!r}.")
        self.precision = precision
        self._set_time(control_space, steps)
        self._engine = self.integrator.engine(self.dynamics, operators, control_space.features, precision)
        self._check_parameters()

    def _set_time(self, control_space: ControlSpace, steps: int | Sequence[float] | np.ndarray | None) -> None:
        if len(self.operators) != control_space.operators:
            raise ValueError(
                f"The control space was built for {control_space.operators} operators, but {len(self.operators)} are "
                f"given ({', '.join(self.operators.names)}). Build it as ControlSpace(T, cells, operators, features)."
            )
        self.control_space = control_space
        self.depth, self.times = _depth(control_space.depth if steps is None else steps, control_space.T)
        self.steps = len(self.times) - 1

    def _check_parameters(self) -> None:
        learned, given = self.dynamics.parameters, self.control_space.parameters
        if given != learned:
            raise ValueError(
                f"{self.dynamics.name} dynamics learn {len(learned)} parameter(s) beside coefficients and "
                f"biases{_listed(learned)}, the control space has {len(given)}{_listed(given)}. Build it as "
                f"ControlSpace(..., parameters={learned!r}).")

    @property
    def control_set(self) -> ControlSet:
        """The controls in time, and the opening where it is learned."""
        return self.control_space.control_set + self.opening.control_set

    @property
    def sweep(self) -> Sweep:
        """The sweeps; made at first use, and shared with networks of other depths."""
        return self._engine.sweep

    @property
    def features(self) -> int:
        return self.control_space.features

    @property
    def space(self) -> WithGeometry:
        return self.operators.space

    @property
    def comm(self) -> MPI.Comm:
        return self.operators.mesh.comm

    @cached_property
    def step_sizes(self) -> np.ndarray:
        """Of the layers, (N,)."""
        equal = isinstance(self.depth, int)
        return np.full(self.steps, self.control_space.T / self.steps) if equal else np.diff(self.times)

    @cached_property
    def sampling(self) -> np.ndarray:
        """Matrix that evaluates a control at each step's time."""
        return self.control_space.sampling(self.integrator.control_times(self.times))

    def on(self, V: WithGeometry) -> Network:
        """Return the same network on another space: operators rediscretised, controls unchanged."""
        return Network(
            self.operators.on(V), self.control_space, self.depth, self.dynamics, self.integrator, self.opening,
            self.precision)

    def divided(self, parts: int) -> int | np.ndarray:
        """Return the steps, each divided into equal parts, as :meth:`with_depth` takes them."""
        return self.depth * parts if isinstance(self.depth, int) else divided(self.times, parts)

    def with_depth(
        self, control_space: ControlSpace | None = None, steps: int | Sequence[float] | np.ndarray | None = None
    ) -> Network:
        """Return the same network with another control space, other steps, or both.

        What was compiled, assembled or factorised for this one serves that one too.

        Raises
        ------
        ValueError
            If the control space has other features, operators or learned parameters.
        """
        control_space = self.control_space if control_space is None else control_space
        if control_space.features != self.features:
            raise ValueError(
                f"A network of {self.features} features has no depth with controls of {control_space.features}. Build "
                "another Network."
            )
        out = copy.copy(self)
        for cached in ("step_sizes", "sampling"):
            vars(out).pop(cached, None)
        out._set_time(control_space, steps)
        out._check_parameters()
        return out

    def layers(self, m: ControlsLike) -> LayerControls:
        """Return the controls at the times at which the steps take them, with the opening where it is learned.

        Parameters
        ----------
        m
            Controls or a mapping that holds those of :attr:`control_set`, perhaps among others; or just these in order.

        Raises
        ------
        ValueError
            If a control is missing, or is no Function in its space.
        """
        return self.layers_of(self.control_set.arrays(m))

    def layers_of(self, arrays: Mapping[str, np.ndarray]) -> LayerControls:
        """Return :meth:`layers` of degrees of freedom by name; those of other controls are left out."""
        return self.opening.joined(self._in_time(arrays), arrays)

    def layers_adjoint(self, derivative: LayerControls) -> dict[str, np.ndarray]:
        """Return derivatives with respect to the layers' values as those with respect to the controls.

        They are arrays by name, as :meth:`ctrlnet.controls.ControlSet.cofunctions` takes them.
        """
        return self._in_time_adjoint(derivative) | self.opening.derivatives(derivative)

    def in_time(self, m: ControlsLike) -> LayerControls:
        """Return :meth:`layers` of the controls in time alone, for a propagation from a given state."""
        return self._in_time(self.control_space.control_set.arrays(m))

    def cofunctions(self, derivative: LayerControls) -> Controls:
        """Return derivatives with respect to :meth:`in_time` as Cofunctions, in the duals of the controls' spaces."""
        return self.control_space.control_set.cofunctions(self._in_time_adjoint(derivative))

    def _in_time(self, arrays: Mapping[str, np.ndarray]) -> LayerControls:
        return LayerControls(*self.control_space.sampled(self.sampling, arrays))

    def _in_time_adjoint(self, derivative: LayerControls) -> dict[str, np.ndarray]:
        return self.control_space.sampled_adjoint(self.sampling, *derivative.in_time.arrays)

    def state_space(self, images: int) -> WithGeometry:
        """Return the space of C features for ``images`` images, image index fastest."""
        return VectorFunctionSpace(self.operators.mesh, self.space.ufl_element(), dim=self.features * images)


def _depth(steps: int | Sequence[float] | np.ndarray, T: float) -> tuple[int | np.ndarray, np.ndarray]:
    """Return the number of equal steps, or the times of others, and the times in either case."""
    if not isinstance(steps, Sequence | np.ndarray) or isinstance(steps, str):
        if not isinstance(steps, Integral) or steps < 1:
            raise ValueError(
                f"A network needs a whole number of layers, at least one, or their times; received steps={steps!r}.")
        return int(steps), T / int(steps) * np.arange(int(steps) + 1)
    times = checked_times(steps, "the steps", T)
    return times, times


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
