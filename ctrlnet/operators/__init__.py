"""`D_j`: UFL forms, assembled with lumped mass; stencils; the mesh hierarchy and transfer between its levels."""

from ctrlnet.operators.assembled import Operators, interior_stencil, low_order_operators, stencil_operators
from ctrlnet.operators.forms import Operator, derivative, identity, laplacian, lumped_dx, second_derivative
from ctrlnet.operators.intergrid import Averaging, FullWeighting, Injection, Linear, NestingError, PiecewiseConstant

__all__ = [
    "Averaging", "FullWeighting", "Injection", "Linear", "NestingError", "Operator", "Operators", "PiecewiseConstant",
    "derivative", "identity", "interior_stencil", "laplacian", "low_order_operators", "lumped_dx", "second_derivative",
    "stencil_operators",
]
