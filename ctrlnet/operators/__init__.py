"""`D_j`: UFL forms, assembled with lumped mass; stencils; the mesh hierarchy and transfer between its levels."""

from ctrlnet.operators.assembled import Operators, interior_stencil, low_order_operators, stencil_operators
from ctrlnet.operators.forms import (
    Operator,
    derivative,
    directional_derivative,
    identity,
    laplacian,
    lumped_dx,
    second_derivative,
)
from ctrlnet.operators.intergrid import Averaging, FullWeighting, Injection, Linear, NestingError, PiecewiseConstant
from ctrlnet.operators.sphere import east, north, sphere_hierarchy

__all__ = [
    "Averaging", "FullWeighting", "Injection", "Linear", "NestingError", "Operator", "Operators", "PiecewiseConstant",
    "derivative", "directional_derivative", "east", "identity", "interior_stencil", "laplacian", "low_order_operators",
    "lumped_dx", "north", "second_derivative", "sphere_hierarchy", "stencil_operators",
]
