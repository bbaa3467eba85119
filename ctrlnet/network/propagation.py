r"""Propagation as one pyadjoint Block: (m, Y(0)) -> Y(T) with value, adjoint, tangent and second order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from firedrake import Cofunction, Function
from mpi4py import MPI
from pyadjoint import Block, annotate_tape, get_working_tape, stop_annotating

from ctrlnet.controls import ControlsLike
from ctrlnet.errors import PropagationError
from ctrlnet.network.network import Network

__all__ = ["PropagationBlock", "propagate"]


class PropagationBlock(Block):
    r"""The map F: M x V -> V, (m, Y_0) -> Y_N, and its derivatives; M is the space of the controls in time.

    * recompute: :math:`Y_N = F(m, Y_0)`
    * adjoint: V* -> M* x V*, :math:`\lambda \mapsto F'^*\lambda`
    * tangent: M x V -> V, :math:`F'(dm, dY_0)`
    * Hessian: forward over reverse, :math:`F'^* d\lambda + (F''\cdot)^*\lambda`

    exact for the discrete scheme, to round-off.
    """

    def __init__(self, network: Network, m: ControlsLike, Y0: Function):
        super().__init__()
        self.network = network
        self.state_space = Y0.function_space()
        self.images = self.state_space.value_size // network.features
        for dependency in (*network.control_space.control_set.controls(m), Y0):
            self.add_dependency(dependency)

    def _padded(self) -> int:
        block = self.network.sweep.image_block
        return -(-self.images // block) * block

    def _unpack(self, values: np.ndarray, out: np.ndarray) -> np.ndarray:
        out[:, :, : self.images] = values.reshape(-1, self.network.features, self.images)
        return out

    def _pack(self, field: np.ndarray, target) -> Function | Cofunction:
        target.dat.data[:] = field[:, :, : self.images].reshape(target.dat.data_ro.shape)
        return target

    def _forward(self, inputs):
        *m, Y0 = inputs
        net = self.network
        controls = net.in_time(m)
        trajectory = net.sweep.trajectory(net.steps, self._padded())
        self._unpack(Y0.dat.data_ro, trajectory.initial)
        return controls, trajectory, net.sweep.forward(controls, net.step_sizes, trajectory)

    def _tangent(self, tlm_inputs, controls, trajectory):
        net = self.network
        *dm, dY0 = tlm_inputs
        direction = net.in_time(net.control_space.control_set.filled(dm))
        tangent = net.sweep.trajectory(net.steps, self._padded())
        if dY0 is not None:
            self._unpack(dY0.dat.data_ro, tangent.initial)
        return direction, tangent, net.sweep.tangent(controls, direction, net.step_sizes, trajectory, tangent)

    def _cofunctions(self, derivative, lam):
        for array in derivative.arrays:
            self.network.comm.Allreduce(MPI.IN_PLACE, array)
        return (*self.network.cofunctions(derivative), self._pack(lam, Cofunction(self.state_space.dual())))

    def _field(self, cofunction) -> np.ndarray:
        field = self.network.sweep.field(self._padded())
        return field if cofunction is None else self._unpack(cofunction.dat.data_ro, field)

    def recompute_component(self, inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any) -> Any:
        final = self._forward(inputs)[2]
        if not self.network.comm.allreduce(bool(np.isfinite(final[:, :, : self.images]).all()), op=MPI.LAND):
            raise PropagationError(
                f"The state at time {self.network.control_space.T:g} is not finite after {self.network.steps} layers. "
                "Take more layers, a shorter time, smaller controls, or a scheme that is stable for longer steps; and "
                "see that the controls and the initial state are finite.")
        return self._pack(final, Function(self.state_space))

    def prepare_evaluate_adj(self, inputs: Sequence[Any], adj_inputs: Sequence[Any], relevant_dependencies: Any) -> Any:
        controls, trajectory, _ = self._forward(inputs)
        lam = self._field(adj_inputs[0])
        return self._cofunctions(
            self.network.sweep.adjoint(controls, self.network.step_sizes, trajectory, lam), lam)

    def evaluate_adj_component(
        self, inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        return prepared[idx]

    def evaluate_tlm_component(
        self, inputs: Sequence[Any], tlm_inputs: Sequence[Any], block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        controls, trajectory, _ = self._forward(inputs)
        return self._pack(self._tangent(tlm_inputs, controls, trajectory)[2], Function(self.state_space))

    def prepare_evaluate_hessian(
        self, inputs: Sequence[Any], hessian_inputs: Sequence[Any], adj_inputs: Sequence[Any],
        relevant_dependencies: Any,
    ) -> Any:
        net = self.network
        controls, trajectory, _ = self._forward(inputs)
        direction, tangent, _ = self._tangent([d.tlm_value for d in self.get_dependencies()], controls, trajectory)
        lam, dlam = self._field(adj_inputs[0]), self._field(hessian_inputs[0])
        change = net.sweep.second_order(controls, direction, net.step_sizes, trajectory, tangent, lam, dlam)
        return self._cofunctions(change, dlam)

    def evaluate_hessian_component(
        self, inputs: Sequence[Any], hessian_inputs: Sequence[Any], adj_inputs: Sequence[Any], block_variable: Any,
        idx: int, relevant_dependencies: Any, prepared: Any = None,
    ) -> Any:
        return prepared[idx]


def propagate(network: Network, m: ControlsLike, Y0: Function) -> Function:
    """Return Y(T), annotated on the working tape as one block.

    Parameters
    ----------
    network
        The discrete map.
    m
        Controls; those in time are taken, which may be all. See :meth:`ctrlnet.Network.in_time`.
    Y0
        Initial state in ``network.state_space(images)``.

    Raises
    ------
    ValueError
        If Y0 lives on another mesh than the operators, or its components are not a multiple of C; if a control is
        missing, or no Function in its space.
    PropagationError
        If the state at time T is not finite.
    """
    space = Y0.function_space()
    if space.mesh() is not network.operators.mesh:
        raise ValueError(
            f"Y0 lives on {space.mesh()}, the operators on {network.operators.mesh}. Use network.on(space) to "
            "rediscretise the operators there."
        )
    nodes = space.dim() // space.value_size
    if space.value_size % network.features or nodes != network.space.dim():
        raise ValueError(
            f"Y0 has {space.value_size} components on {nodes} nodes; a state needs a multiple of "
            f"{network.features} components on {network.space.dim()} nodes. Use network.state_space(images)."
        )
    block = PropagationBlock(network, m, Y0)
    with stop_annotating():
        result = block.recompute_component((*network.control_space.control_set.controls(m), Y0), None, 0, None)
    if annotate_tape():
        get_working_tape().add_block(block)
        block.add_output(result.create_block_variable())
    return result
