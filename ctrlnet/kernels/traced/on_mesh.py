"""A program on one mesh: the rows of operators that it applies, and its sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ufl.core.expr import Expr

from ctrlnet.formulas.language import Pointwise
from ctrlnet.formulas.program import Program
from ctrlnet.kernels.code.arrays import LinearSolve
from ctrlnet.kernels.code.patterns import OperatorRows
from ctrlnet.kernels.traced.primitives import Primitives
from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.forms import laplacian
from ctrlnet.operators.stencil_table import StencilTable

__all__ = ["OnMesh", "mesh_for"]


@dataclass
class OnMesh:
    """What a program needs of one mesh: rows of its sets of operators, each with its halo, and the kernels."""

    rows: dict[str, OperatorRows]
    primitives: Primitives
    owned: int
    nodes: int
    pointwise: dict[Pointwise, Primitives]
    resolvents: Callable[[float, float], LinearSolve] | None = None


def mesh_for(program: Program, operators: Operators, precision: str) -> OnMesh:
    """Return the rows and kernels that a program needs on the operators' mesh; those of one activation each."""
    kinds = program.kinds()
    tables = {"operators": operators.table}
    if "adjoints" in kinds:
        tables["adjoints"] = _adjoint_table(operators)
    if "laplacian" in kinds:
        tables["laplacian"] = Operators(operators.space, [laplacian]).table
    widest = max(max(t.forward.widest_row, t.transposed.widest_row) for t in tables.values())
    pointwise = {
        activation: Primitives(program.features, activation, precision, widest, operators.mesh.comm)
        for activation in program.activations() or [_Identity()]
    }
    primitives = next(iter(pointwise.values()))
    rows = {name: OperatorRows(table, primitives.precision) for name, table in tables.items()}
    owned = operators.table.owned
    return OnMesh(rows, primitives, owned, max(t.nodes for t in tables.values()), pointwise)


@dataclass(frozen=True)
class _Identity:
    """For the kernels of a program that applies no function node by node."""

    keeps_value = False
    c_text = ("z", "SPLAT(1.0)", "SPLAT(0.0)")

    def __call__(self, z: Expr) -> Expr:
        return z


def _adjoint_table(operators: Operators) -> StencilTable:
    r"""Return the rows of :math:`D_j^* = M_L^{-1} D_j^T M_L`."""
    with operators.lumped_mass.dat.vec_ro as mass:
        inverse = mass.copy()
        adjoints = [m.copy().transpose() for m in operators.matrices]
        inverse.reciprocal()
        for matrix in adjoints:
            matrix.diagonalScale(L=inverse, R=mass)
    return StencilTable(adjoints)
