"""What schemes share: the times of their controls, and the sweeps of a scheme with given dynamics."""

from __future__ import annotations

import numpy as np

from ctrlnet.controls import BEFORE_JUMP
from ctrlnet.dynamics import UserDynamics
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.kernels.operations import OnMesh, Run
from ctrlnet.kernels.primitives import OperatorRows, Primitives
from ctrlnet.kernels.program import Program
from ctrlnet.kernels.stencil_table import StencilTable
from ctrlnet.kernels.step_sweep import StateFields, StepSweep
from ctrlnet.operators import Operators, laplacian

__all__ = ["Scheme", "mesh_for", "require_formula", "step_sweep", "traced_sweep"]


class Scheme:
    """A time-stepping scheme with controls at the times t_k + c_i h, i = 1..m.

    Attributes
    ----------
    order
        Order of convergence in h where state and controls are smooth.
    nodes : tuple of float
        The c_i, in [0, 1].
    """

    order: int
    nodes: tuple[float, ...] = (0.0,)

    def control_times(self, T: float, steps: int) -> np.ndarray:
        """Return the times at which the steps take their controls, (steps * m,).

        A time at the end of a step is a little before it: where controls jump, a step sees their values within.
        """
        nodes = np.array(self.nodes)
        times = T / steps * (np.arange(steps)[:, None] + nodes)
        return (times - np.where(nodes < 1, 0.0, BEFORE_JUMP * T)).ravel()


def require_formula(scheme, dynamics) -> None:
    """Raise a ValueError if the dynamics give no rate that a scheme's program can be traced from."""
    if isinstance(dynamics, UserDynamics):
        raise ValueError(
            f"{type(scheme).__name__} has no sweep for dynamics that are written as a UFL form; UserDynamics go with "
            "Irksome(tableau)."
        )
    if not isinstance(dynamics, Dynamics):
        raise ValueError(
            f"{type(scheme).__name__} has no sweep for {type(dynamics).__name__} dynamics: a right-hand side derives "
            "from ctrlnet.dynamics.system.Dynamics and gives its rate as a formula, or is a UFL form in UserDynamics."
        )


def step_sweep(formula, dynamics, operators: Operators, features: int, precision: str, stages: int) -> StepSweep:
    """Return the sweeps of a step given as a formula (program, state) -> state.

    Parameters
    ----------
    formula
        Traced once; see :class:`~ctrlnet.kernels.program.Program`.
    dynamics
        Gives the number of parts and the activation.
    operators, features, precision
        Of the network.
    stages
        Rows of the controls that a step takes.
    """
    program = Program.of(formula, dynamics.parts, features)
    return traced_sweep(program, mesh_for(program, dynamics, operators, precision), stages)


def traced_sweep(program: Program, mesh: OnMesh, stages: int, solver=None) -> StepSweep:
    """Return the sweeps of a program; see :class:`~ctrlnet.kernels.step_sweep.StepSweep`."""
    primitives = mesh.primitives
    fields = StateFields(
        mesh.rows["operators"].table, mesh.nodes, program.parts, program.features, primitives.dtype,
        primitives.image_block)
    return StepSweep(fields, stages, lambda images: Run(program, mesh, images, solver))


def mesh_for(program: Program, dynamics, operators: Operators, precision: str) -> OnMesh:
    """Return the rows and kernels that a program needs on the operators' mesh."""
    kinds = program.kinds()
    tables = {"operators": operators.table}
    if "adjoints" in kinds:
        tables["adjoints"] = _adjoint_table(operators)
    if "laplacian" in kinds:
        tables["laplacian"] = Operators(operators.space, [laplacian]).table
    widest = max(max(t.forward.widest_row, t.transposed.widest_row) for t in tables.values())
    primitives = Primitives(program.features, dynamics.activation, precision, widest, operators.mesh.comm)
    rows = {name: OperatorRows(table, primitives.dtype) for name, table in tables.items()}
    owned = operators.table.owned
    return OnMesh(rows, primitives, owned, max(t.nodes for t in tables.values()))


def _adjoint_table(operators: Operators) -> StencilTable:
    r"""Return the rows of :math:`D_j^* = M_L^{-1} D_j^T M_L`."""
    with operators.lumped_mass.dat.vec_ro as mass:
        inverse = mass.copy()
        adjoints = [m.copy().transpose() for m in operators.matrices]
        inverse.reciprocal()
        for matrix in adjoints:
            matrix.diagonalScale(L=inverse, R=mass)
    return StencilTable(adjoints)
