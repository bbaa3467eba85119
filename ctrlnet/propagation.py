r"""Propagation as one pyadjoint Block: (s, b, Y(0)) -> Y(T) with value, adjoint, tangent and second order."""

from __future__ import annotations

import numpy as np
from firedrake import Cofunction, Function
from mpi4py import MPI
from pyadjoint import Block, annotate_tape, get_working_tape, stop_annotating

from ctrlnet.network import Network

__all__ = ["PropagationBlock", "propagate"]


class PropagationBlock(Block):
    r"""The map F: S x B x V -> V, (s, b, Y_0) -> Y_N, and its derivatives.

    * recompute: :math:`Y_N = F(s, b, Y_0)`
    * adjoint: V* -> S* x B* x V*, :math:`\lambda \mapsto F'^*\lambda`
    * tangent: S x B x V -> V, :math:`F'(ds, db, dY_0)`
    * Hessian: forward over reverse, :math:`F'^* d\lambda + (F''\cdot)^*\lambda`

    exact for the discrete scheme, to round-off.
    """

    def __init__(self, network: Network, s: Function, b: Function, Y0: Function):
        super().__init__()
        self.network = network
        self.state_space = Y0.function_space()
        self.images = self.state_space.value_size // network.features
        for dependency in (s, b, Y0):
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
        s, b, Y0 = inputs
        net = self.network
        S, biases = net.layers(s, b)
        trajectory = net.sweep.trajectory(net.steps, self._padded())
        self._unpack(Y0.dat.data_ro, trajectory.initial)
        final = net.sweep.forward(S, biases, net.step_sizes, trajectory)
        return S, trajectory, final

    def _tangent(self, tlm_inputs, S, trajectory):
        net = self.network
        ds, db, dY0 = tlm_inputs
        dS = np.zeros_like(S) if ds is None else net.controls.s_layers(net.sampling, ds)
        db = net.controls.functions()[1] if db is None else db
        dB = net.controls.b_layers(net.sampling, db)
        tangent = net.sweep.trajectory(net.steps, self._padded())
        if dY0 is not None:
            self._unpack(dY0.dat.data_ro, tangent.initial)
        return dS, tangent, net.sweep.tangent(S, dS, dB, net.step_sizes, trajectory, tangent)

    def _cofunctions(self, gS, gb, lam):
        net = self.network
        net.comm.Allreduce(MPI.IN_PLACE, gS)
        net.comm.Allreduce(MPI.IN_PLACE, gb)
        return (
            net.controls.s_cofunction(net.sampling, gS),
            net.controls.b_cofunction(net.sampling, gb),
            self._pack(lam, Cofunction(self.state_space.dual())),
        )

    def _field(self, cofunction) -> np.ndarray:
        field = self.network.sweep.field(self._padded())
        return field if cofunction is None else self._unpack(cofunction.dat.data_ro, field)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return self._pack(self._forward(inputs)[2], Function(self.state_space))

    def prepare_evaluate_adj(self, inputs, adj_inputs, relevant_dependencies):
        S, trajectory, _ = self._forward(inputs)
        lam = self._field(adj_inputs[0])
        gS, gb = self.network.sweep.adjoint(S, self.network.step_sizes, trajectory, lam)
        return self._cofunctions(gS, gb, lam)

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return prepared[idx]

    def evaluate_tlm_component(self, inputs, tlm_inputs, block_variable, idx, prepared=None):
        S, trajectory, _ = self._forward(inputs)
        return self._pack(self._tangent(tlm_inputs, S, trajectory)[2], Function(self.state_space))

    def prepare_evaluate_hessian(self, inputs, hessian_inputs, adj_inputs, relevant_dependencies):
        net = self.network
        S, trajectory, _ = self._forward(inputs)
        dS, tangent, _ = self._tangent([d.tlm_value for d in self.get_dependencies()], S, trajectory)
        lam, dlam = self._field(adj_inputs[0]), self._field(hessian_inputs[0])
        gS, gb = net.sweep.second_order(S, dS, net.step_sizes, trajectory, tangent, lam, dlam)
        return self._cofunctions(gS, gb, dlam)

    def evaluate_hessian_component(
        self, inputs, hessian_inputs, adj_inputs, block_variable, idx, relevant_dependencies, prepared=None
    ):
        return prepared[idx]


def propagate(network: Network, s: Function, b: Function, Y0: Function) -> Function:
    """Return Y(T), annotated on the working tape as one block.

    Parameters
    ----------
    network
        The discrete map.
    s, b
        Controls in ``network.controls.s_space`` and ``b_space``.
    Y0
        Initial state in ``network.state_space(images)``.

    Raises
    ------
    ValueError
        If Y0 lives on another mesh than the operators, or its components are not a multiple of C.
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
    block = PropagationBlock(network, s, b, Y0)
    with stop_annotating():
        result = block._pack(block._forward((s, b, Y0))[2], Function(space))
    if annotate_tape():
        get_working_tape().add_block(block)
        block.add_output(result.create_block_variable())
    return result
