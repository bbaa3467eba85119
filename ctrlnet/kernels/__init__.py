"""The fast route: generated, fused sweeps over a sparse stencil table."""

from ctrlnet.kernels.checkpointing import checkpointed_adjoint
from ctrlnet.kernels.imex import ImplicitExplicitSweep
from ctrlnet.kernels.learned_diffusion import LearnedDiffusionSweep
from ctrlnet.kernels.multigrid import DiffusionLevel, MultigridSolve
from ctrlnet.kernels.row_product import RowProduct
from ctrlnet.kernels.stencil_table import StencilTable
from ctrlnet.kernels.substitution import DirectSolve
from ctrlnet.kernels.sweep import FusedSweep, Trajectory

__all__ = [
    "DiffusionLevel", "DirectSolve", "FusedSweep", "ImplicitExplicitSweep", "LearnedDiffusionSweep", "MultigridSolve",
    "RowProduct", "StencilTable", "Trajectory", "checkpointed_adjoint",
]
