r"""Reaction-diffusion dynamics: a residual network whose features diffuse."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.activations import Activation, tanh
from ctrlnet.dynamics.diffusion import Diffusion
from ctrlnet.dynamics.residual import Residual
from ctrlnet.dynamics.system import Composed, Dynamics

__all__ = ["ReactionDiffusion"]


@dataclass(frozen=True)
class ReactionDiffusion(Composed):
    r""":math:`\dot Y = \sigma(K(t) Y + b(t)) + \nu \Delta Y` with no flux through the boundary.

    It is ``Residual(activation) + Diffusion(nu, learned)``. Diffusion damps what a mesh does not resolve, so that
    coefficients learned on one mesh carry to others.

    Parameters
    ----------
    nu
        Diffusivity, positive, in squared units of length of the mesh per unit of time.
    activation
        sigma, applied node by node.
    learned
        Learn the diffusivity too, :math:`\nu(t) = \nu e^{r(t)}`: positive whatever the control r, which is called
        ``log_diffusivity``, ``ControlSpace(..., parameters=("log_diffusivity",))``. It starts at 0, and the
        regularisation draws it there as it does b.

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
        _ = self.terms  # what they refuse is refused here

    @property
    def terms(self) -> tuple[Dynamics, ...]:
        return Residual(self.activation), Diffusion(self.nu, self.learned)
