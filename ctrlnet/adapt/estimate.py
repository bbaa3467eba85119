r"""Estimates of the error that a network's mesh and its steps make in a goal, by cell and by step.

The mesh's is :math:`\tilde G - G` for the mesh with every cell divided, the steps' for every step halved: see
:mod:`~ctrlnet.adapt.two_levels`. Where the error falls like :math:`h^p`, that difference is the share
:math:`1 - 2^{-p}` of it, by which it is divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from firedrake import Function, FunctionSpace, TestFunction, assemble
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint.tape import no_annotations

from ctrlnet.adapt.goals import Goal
from ctrlnet.adapt.two_levels import Difference, Levels, difference_of
from ctrlnet.errors import finite
from ctrlnet.kernels.solves.field_map import FieldMap
from ctrlnet.network.network import Network
from ctrlnet.network.stability import look_once_at_steps
from ctrlnet.objective.work import Work
from ctrlnet.operators.forms import lumped_dx
from ctrlnet.operators.intergrid import interpolation_matrix
from ctrlnet.operators.refinement import refined

__all__ = ["ErrorEstimate", "mesh_error", "step_error"]


@dataclass(frozen=True)
class ErrorEstimate:
    r"""The estimated error of a goal, exact minus discrete, and its parts.

    Their sum over cells, and that of steps, opening and ending, is the whole, on any number of ranks.

    Parameters
    ----------
    network
        Whose error it is.
    cells : Function
        DG0, each cell's part; signed.
    steps
        (N,), each step's part; signed.
    opening, ending
        What the opening, with the map of inputs to nodes, and the goal itself add, such as a readout's integrals.
    value, finer
        The goal of the network and of the refined one.
    share
        :math:`1 - 2^{-p}`, of the error that the difference of the two is.
    """

    network: Network
    cells: Function
    steps: np.ndarray
    opening: float
    ending: float
    value: float
    finer: float
    share: float

    @property
    def whole(self) -> float:
        """The estimated error, the sum of the parts."""
        return float(self.steps.sum()) + self.opening + self.ending

    @property
    def change(self) -> float:
        """The goal's difference on both levels over :attr:`share`: the whole up to the third power of the error."""
        return (self.finer - self.value) / self.share


@no_annotations
def mesh_error(
    goal: Goal, *, order: float = 2.0, finer: Network | None = None, memory_limit: int = 2**28,
    work: Work | None = None,
) -> ErrorEstimate:
    """Estimate the error that the mesh makes in a goal. Collective.

    It costs one forward propagation of the mesh with every cell divided, and three forward propagations and one adjoint
    of the network itself, which has a fourth of the nodes in two dimensions: 2.25 forward propagations of the fine
    mesh.

    Parameters
    ----------
    goal
        Such as ``MeanLoss.of(problem, m)``.
    order
        p, at which the error falls with the cells' size; 2 for smooth states and operators of central differences, 1
        for pictures, whose pixels jump.
    finer
        The same network on the mesh with every cell divided, where there is one already. Where its explicit steps are
        too long there, a :class:`~ctrlnet.network.stability.StabilityWarning` says so.
    memory_limit
        Bytes for the states of a chunk of images.
    work
        Counts the sweeps.

    Raises
    ------
    ValueError
        If the mesh cannot be refined, the order is not positive, or the goal does not depend on the final states.
    PropagationError
        If a state on either mesh is not finite.
    """
    share = _share(order)
    V = goal.network.space
    network = goal.network.on(V.reconstruct(mesh=refined(V.mesh()))) if finer is None else finer
    look_once_at_steps(network, goal.m)
    fine = network.space
    inject = FieldMap(interpolation_matrix(fine, V))
    prolong = interpolation_matrix(V, fine)
    owned = V.dof_dset.size

    def injected(field: np.ndarray) -> np.ndarray:
        out = np.empty((owned, *field.shape[1:]))
        inject(np.ascontiguousarray(field, dtype=float), out)
        return out.astype(field.dtype, copy=False)

    levels = Levels(injected, lambda numbers: _transposed_product(prolong, numbers))
    difference = difference_of(goal, goal.on(network), levels, memory_limit, _counter(work))
    return _estimate(goal.network, difference, share)


@no_annotations
def step_error(goal: Goal, *, memory_limit: int = 2**28, work: Work | None = None) -> ErrorEstimate:
    """Estimate the error that the time steps make in a goal; otherwise as :func:`mesh_error`.

    It costs five forward propagations of the network, and one adjoint.
    """
    network = goal.network
    halved = network.with_depth(steps=network.divided(2))
    levels = Levels(lambda field: field.copy(), lambda numbers: numbers, 2)
    difference = difference_of(goal, goal.on(halved), levels, memory_limit, _counter(work))
    return _estimate(network, difference, _share(network.integrator.order))


def _share(order: float) -> float:
    if not (finite(order) and order > 0):
        raise ValueError(f"The order at which an error falls is a positive number, received {order!r}.")
    return 1.0 - 2.0**-order


def _counter(work: Work | None) -> Work:
    return Work() if work is None else work


def _estimate(network: Network, difference: Difference, share: float) -> ErrorEstimate:
    comm = network.comm
    sums = np.array([*difference.steps.sum(axis=1), difference.opening.sum(), difference.ending.sum()]) / share
    comm.Allreduce(MPI.IN_PLACE, sums)
    cells = _by_cell(network, difference.nodes / share)
    *steps, opening, ending = sums
    return ErrorEstimate(
        network, cells, np.array(steps), float(opening), float(ending), difference.coarse, difference.fine, share)


def _by_cell(network: Network, nodes: np.ndarray) -> Function:
    """Return what nodes have, shared out among the cells around each in the proportion of its lumped mass."""
    density = Function(network.space)
    density.dat.data_wo[:] = nodes / network.operators.mass
    cells = Function(FunctionSpace(network.operators.mesh, "DG", 0), name="error")
    cells.dat.data_wo[:] = assemble(density * TestFunction(cells.function_space()) * lumped_dx()).dat.data_ro
    return cells


def _transposed_product(matrix: PETSc.Mat, numbers: np.ndarray) -> np.ndarray:
    right, left = matrix.createVecs()
    left.array[:] = numbers
    matrix.multTranspose(left, right)
    return right.array_r.copy()
