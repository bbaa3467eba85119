r"""The inverse of :math:`I - c\Delta_h` on a network's mesh: by factors, or by multigrid where they are too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse as sp

from ctrlnet.hierarchy import interpolation_matrix, operators_by_level
from ctrlnet.kernels import DiffusionLevel, DirectSolve, MultigridSolve
from ctrlnet.kernels.imex import LinearSolve
from ctrlnet.kernels.substitution import gathered
from ctrlnet.operators import Operators, laplacian

__all__ = ["CONJUGATE_GRADIENTS", "MOST_DIRECT", "check_solver", "diffusion_solver"]

CONJUGATE_GRADIENTS = {
    "ksp_type": "cg", "ksp_atol": 1e-300, "ksp_max_it": 500, "pc_type": "mg",
    "mg_levels_ksp_type": "chebyshev", "mg_levels_ksp_max_it": 2, "mg_levels_pc_type": "jacobi",
    "mg_coarse_ksp_type": "preonly", "mg_coarse_pc_type": "python",
}
MOST_DIRECT = 2**30
_ENTRY_BYTES = 12  # a double and its column
_TOLERANCES = {np.dtype(np.float64): 1e-13, np.dtype(np.float32): 1e-7}
_SOLVERS = ("auto", "direct", "multigrid")


def check_solver(solver: str, parameters: Mapping) -> None:
    """Raise a ValueError unless there is a solver of this name that takes the parameters."""
    if solver not in _SOLVERS:
        raise ValueError(f"The solver of an IMEX step is one of {', '.join(_SOLVERS)}; received {solver!r}.")
    if solver == "direct" and parameters:
        raise ValueError(
            f"The direct solver of an IMEX step takes no PETSc options, received {dict(parameters)}; they are for "
            "solver='multigrid'."
        )


def diffusion_solver(operators: Operators, sweep, solver: str, parameters: Mapping) -> Callable[[float], LinearSolve]:
    r"""Return c -> the solve with :math:`I - c\Delta_h`.

    Parameters
    ----------
    operators
        Their space is what :math:`\Delta_h` acts on, and on the coarser meshes of its hierarchy.
    sweep
        Of the fields that are solved for: their dtype and SIMD lanes.
    solver, parameters
        See :class:`~ctrlnet.IMEX`.
    """
    diffusion = Operators(operators.space, [laplacian])
    if solver == "direct" or (solver == "auto" and _factor_bytes(diffusion) <= MOST_DIRECT):
        matrix = gathered(diffusion.matrices[0])
        identity = sp.eye_array(matrix.shape[0], format="csr")
        owned, comm = diffusion.mass.size, operators.mesh.comm
        return lambda c: DirectSolve(identity - c * matrix, owned, sweep.dtype, sweep.lanes, comm)
    levels = _levels(diffusion)
    own = {"ksp_rtol": _TOLERANCES[np.dtype(sweep.dtype)]} | ({"pc_type": "jacobi"} if len(levels) == 1 else {})
    options = CONJUGATE_GRADIENTS | own | dict(parameters)
    return lambda c: MultigridSolve(levels, c, options, "ctrlnet_diffusion_")


def _factor_bytes(diffusion: Operators) -> float:
    """Return an estimate of the memory of the factors of I - c Laplacian.

    Minimum degree leaves, measured on uniform squares and cubes of up to 200,000 nodes and within a third, entries in
    proportion to those of the matrix: times log2 of the nodes in two dimensions, nodes to the power 2/3 in three.
    """
    nodes, matrix = diffusion.nodes, diffusion.matrices[0]
    fill = {1: 1.3, 2: 0.62 * math.log2(nodes), 3: 0.072 * nodes ** (2 / 3)}[diffusion.mesh.topological_dimension]
    entries = np.count_nonzero(matrix.getValuesCSR()[2])
    return _ENTRY_BYTES * fill * matrix.comm.tompi4py().allreduce(entries)


def _levels(diffusion: Operators) -> list[DiffusionLevel]:
    """Return the levels of the mesh and all coarser ones of its hierarchy, finest first."""
    sets = operators_by_level(diffusion)
    masses = []
    for D in sets:
        with D.lumped_mass.dat.vec_ro as mass:
            masses.append(mass.copy())
    matrices = [D.matrices[0] for D in sets]
    prolongations = [interpolation_matrix(coarse.space, D.space) for D, coarse in zip(sets, sets[1:], strict=False)]
    finer = map(DiffusionLevel.above, matrices[:-1], masses[:-1], prolongations)
    return [*finer, DiffusionLevel(matrices[-1], masses[-1])]
