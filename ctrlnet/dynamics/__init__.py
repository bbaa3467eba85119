"""Right-hand sides, sums of terms, one a file; activations."""

from ctrlnet.dynamics.antisymmetric import Antisymmetric
from ctrlnet.dynamics.diffusion import Diffusion
from ctrlnet.dynamics.hamiltonian import Hamiltonian
from ctrlnet.dynamics.hyperbolic import Hyperbolic
from ctrlnet.dynamics.parabolic import Parabolic
from ctrlnet.dynamics.reaction_diffusion import ReactionDiffusion
from ctrlnet.dynamics.residual import Residual
from ctrlnet.dynamics.system import Dynamics, Sum
from ctrlnet.dynamics.user_defined import UserDynamics

__all__ = [
    "Antisymmetric", "Diffusion", "Dynamics", "Hamiltonian", "Hyperbolic", "Parabolic", "ReactionDiffusion", "Residual",
    "Sum", "UserDynamics",
]
