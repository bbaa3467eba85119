r"""Reaction-diffusion dynamics: a residual network whose features diffuse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ufl
from firedrake import Constant

from ctrlnet.activations import Activation, tanh
from ctrlnet.dynamics.system import Dynamics
from ctrlnet.kernels.program import State
from ctrlnet.operators import lumped_dx

__all__ = ["ReactionDiffusion"]


@dataclass(frozen=True)
class ReactionDiffusion(Dynamics):
    r""":math:`\dot Y = \sigma(K(t) Y + b(t)) + \nu \Delta Y` with no flux through the boundary.

    Diffusion damps what a mesh does not resolve, so that coefficients learned on one mesh carry to others.

    Parameters
    ----------
    nu
        Diffusivity, positive, in squared units of length of the mesh per unit of time.
    activation
        sigma, applied node by node.
    learned
        Learn the diffusivity too, :math:`\nu(t) = \nu e^{r(t)}`: positive whatever the control r, which is one
        parameter of the control space, ``ControlSpace(..., parameters=1)``, and with it the last component of b. It
        starts at 0 and the regularisation of b draws it there. For the IMEX step.

    Raises
    ------
    ValueError
        If nu is not positive and finite.

    Source: Haber, Lensink, Treister and Ruthotto, "IMEXnet: a forward stable deep neural network", 2019.
    """

    nu: float
    activation: Activation = tanh
    learned: bool = False

    def __post_init__(self):
        if not 0 < self.nu < math.inf:
            raise ValueError(
                f"The diffusivity nu must be positive and finite, received {self.nu!r}; "
                "without diffusion use Residual()."
            )

    @property
    def parameters(self) -> int:
        return int(self.learned)

    def right_hand_side(self, Z):
        """Return the reaction as UFL, given Z = K Y + b at a node."""
        return self.activation(Z)

    def diffusion(self, u, v, r=0.0) -> ufl.Form:
        r"""Return the form of :math:`\nu e^r\Delta`: (u, v) -> :math:`-\nu\int_L e^r\nabla u\cdot\nabla v\,dx`."""
        return -ufl.inner(ufl.grad(u), ufl.grad(v)) * Constant(self.nu) * ufl.exp(r) * lumped_dx()

    def rate(self, program, stage: int, state: State) -> State:
        if self.learned:
            raise ValueError(
                "A learned diffusivity, ReactionDiffusion(nu, learned=True), is for the IMEX step; others take a "
                "fixed one. Use integrator=IMEX(), or learned=False."
            )
        (Y,) = state
        return State([program.activate(program.K(Y, stage)) + program.laplacian(Y, self.nu)])
