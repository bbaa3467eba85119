r"""The inverse of :math:`I - c\Delta_h` on a network's mesh: by factors, or by multigrid where they are too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ctrlnet.errors import PropagationError
from ctrlnet.kernels.code.arrays import LinearSolve
from ctrlnet.kernels.code.precision import DOUBLE, SINGLE, Precision
from ctrlnet.kernels.solves.levels import levels_of
from ctrlnet.kernels.solves.multigrid import MultigridSolve
from ctrlnet.kernels.solves.substitution import DirectSolve, gathered
from ctrlnet.operators.assembled import Operators
from ctrlnet.operators.forms import laplacian

__all__ = ["CONJUGATE_GRADIENTS", "MOST_DIRECT", "DiffusionOptions", "Resolvents", "diffusion_solver"]

CONJUGATE_GRADIENTS = {
    "ksp_type": "cg", "ksp_atol": 1e-300, "ksp_max_it": 500, "pc_type": "mg",
    "mg_levels_ksp_type": "chebyshev", "mg_levels_ksp_max_it": 2, "mg_levels_pc_type": "jacobi",
    "mg_coarse_ksp_type": "preonly", "mg_coarse_pc_type": "python",
}
MOST_DIRECT = 2**30
_ENTRY_BYTES = 12  # a double and its column
_TOLERANCES = {DOUBLE: 1e-13, SINGLE: 1e-7}
_LARGEST = 20.0  # logarithm of what a learned diffusivity may grow by; far below what rounding of G would spoil
_MOST_KEPT = 64
_SOLVERS = ("auto", "direct", "multigrid")


@dataclass(frozen=True)
class DiffusionOptions:
    """How diffusion is solved for; see :class:`~ctrlnet.IMEX`.

    Raises
    ------
    ValueError
        If there is no solver of this name, or it takes no PETSc options.
    """

    solver: str = "auto"
    parameters: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.solver not in _SOLVERS:
            raise ValueError(f"The solver of an IMEX step is one of {', '.join(_SOLVERS)}; received {self.solver!r}.")
        if self.solver == "direct" and self.parameters:
            raise ValueError(
                f"The direct solver of an IMEX step takes no PETSc options, received {dict(self.parameters)}; they are "
                "for solver='multigrid'."
            )


class Resolvents:
    r"""The maps (c, r) -> the solve with :math:`I - c e^r\Delta_h`; nothing is assembled before the first.

    Those used last are kept, as far as their factors take less than :data:`MOST_DIRECT` bytes all together: steps of
    one size share one, and two depths that are compared do not make theirs again and again.

    Parameters
    ----------
    operators, precision, options
        See :func:`diffusion_solver`.
    """

    def __init__(self, operators: Operators, precision: Precision, options: DiffusionOptions):
        self._operators, self._precision, self._options = operators, precision, options
        self._kept: dict[float, LinearSolve] = {}

    @cached_property
    def _solver(self) -> Callable[[float], LinearSolve]:
        return diffusion_solver(self._operators, self._precision, self._options)

    def __call__(self, c: float, r: float = 0.0) -> LinearSolve:
        """Return a solve.

        Raises
        ------
        PropagationError
            If a learned r is out of range.
        """
        if not r <= _LARGEST:
            raise PropagationError(
                f"The learned diffusivity nu exp(r) left its range: received r = {r:g}, at most {_LARGEST:g}. "
                "Start from a larger nu, or regularise the controls more."
            )
        key = c * math.exp(r)
        found = self._kept.pop(key, None)
        self._kept[key] = found if found is not None else self._solver(key)
        while len(self._kept) > 1 and (
                len(self._kept) > _MOST_KEPT or sum(s.nbytes for s in self._kept.values()) > MOST_DIRECT):
            del self._kept[next(iter(self._kept))]
        return self._kept[key]


def diffusion_solver(
    operators: Operators, precision: Precision, options: DiffusionOptions
) -> Callable[[float], LinearSolve]:
    r"""Return c -> the solve with :math:`I - c\Delta_h`.

    Parameters
    ----------
    operators
        Their space is what :math:`\Delta_h` acts on, and on the coarser meshes of its hierarchy.
    precision
        Of the fields that are solved for.
    options
        Which solver, and its own options.
    """
    diffusion = Operators(operators.space, [laplacian])
    if options.solver == "direct" or (options.solver == "auto" and _factor_bytes(diffusion) <= MOST_DIRECT):
        matrix = gathered(diffusion.matrices[0])
        identity = sp.eye_array(matrix.shape[0], format="csr")
        owned, comm = diffusion.mass.size, operators.mesh.comm
        return lambda c: DirectSolve(identity - c * matrix, owned, precision, comm)
    levels = levels_of(diffusion)
    own = {"ksp_rtol": _TOLERANCES[precision]} | ({"pc_type": "jacobi"} if len(levels) == 1 else {})
    petsc = CONJUGATE_GRADIENTS | own | dict(options.parameters)
    return lambda c: MultigridSolve(levels, c, petsc, "ctrlnet_diffusion_")


def _factor_bytes(diffusion: Operators) -> float:
    """Return an estimate of the memory of the factors of I - c Laplacian.

    Minimum degree leaves, measured on uniform squares and cubes of up to 200,000 nodes and within a third, entries in
    proportion to those of the matrix: times log2 of the nodes in two dimensions, nodes to the power 2/3 in three.
    """
    nodes, matrix = diffusion.nodes, diffusion.matrices[0]
    fill = {1: 1.3, 2: 0.62 * math.log2(nodes), 3: 0.072 * nodes ** (2 / 3)}[diffusion.mesh.topological_dimension]
    entries = np.count_nonzero(matrix.getValuesCSR()[2])
    return _ENTRY_BYTES * fill * matrix.comm.tompi4py().allreduce(entries)
