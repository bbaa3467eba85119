r"""Diffusion, a stiff term of dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Language, State

__all__ = ["Diffusion"]


@dataclass(frozen=True)
class Diffusion(Dynamics):
    r""":math:`\dot Y = \nu\Delta Y` with no flux through the boundary, for sums with other dynamics.

    It is stiff: :class:`~ctrlnet.IMEX` treats it implicitly, by :math:`(I - h\nu\Delta_h)^{-1}`. In a system of several
    parts each of them diffuses, features and velocities alike.

    Parameters
    ----------
    nu
        Diffusivity, positive, in squared units of length of the mesh per unit of time.
    learned
        Learn it, :math:`\nu(t) = \nu e^{r(t)}`, with r the control ``log_diffusivity``, which starts at 0.

    Raises
    ------
    ValueError
        If nu is not positive and finite.
    """

    nu: float
    learned: bool = False
    stiff = True

    def __post_init__(self):
        if not 0 < self.nu < math.inf:
            raise ValueError(
                f"The diffusivity nu must be positive and finite, received {self.nu!r}; "
                "without diffusion leave the term out, as in Residual()."
            )

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("log_diffusivity",) if self.learned else ()

    def fits(self, parts: int) -> bool:
        return True

    def rate(self, language: Language, stage: int, state: State) -> State:
        rates = (None if f is None else language.laplacian(f, self.nu) for f in state)
        return State(language.grow(f, stage, *self.parameters) if self.learned and f is not None else f for f in rates)

    def resolvent(self, language: Language, stage: int, state: State) -> State:
        return State(
            None if f is None else language.resolvent(f, stage, self.nu, *self.parameters) for f in state)
