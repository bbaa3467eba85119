"""Right-hand sides of the state equation, one a file."""

from ctrlnet.dynamics.antisymmetric import Antisymmetric
from ctrlnet.dynamics.hamiltonian import Hamiltonian
from ctrlnet.dynamics.hyperbolic import Hyperbolic
from ctrlnet.dynamics.parabolic import Parabolic
from ctrlnet.dynamics.reaction_diffusion import ReactionDiffusion
from ctrlnet.dynamics.residual import Residual
from ctrlnet.dynamics.user_defined import UserDynamics

__all__ = ["Antisymmetric", "Hamiltonian", "Hyperbolic", "Parabolic", "ReactionDiffusion", "Residual", "UserDynamics"]
