"""The fast route: generated, fused sweeps over a sparse stencil table."""

from ctrlnet.kernels.checkpointing import checkpointed_adjoint
from ctrlnet.kernels.stencil_table import StencilTable
from ctrlnet.kernels.sweep import FusedSweep, Trajectory

__all__ = ["FusedSweep", "StencilTable", "Trajectory", "checkpointed_adjoint"]
