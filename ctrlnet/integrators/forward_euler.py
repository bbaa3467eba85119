r"""Forward Euler: one layer of a ResNet is one step."""

from __future__ import annotations

from dataclasses import dataclass

from ctrlnet.dynamics.system import Dynamics
from ctrlnet.formulas.language import Formula
from ctrlnet.integrators.base import FormulaScheme

__all__ = ["ForwardEuler"]


@dataclass(frozen=True)
class ForwardEuler(FormulaScheme):
    r""":math:`Y_{k+1} = Y_k + h f(t_k, Y_k)`: explicit, first order.

    Stable while the eigenvalues of :math:`h\,\sigma' K` stay within distance 1 of -1, so the step must shrink
    with the mesh width.
    """

    order = 1

    def step(self, dynamics: Dynamics) -> Formula:
        """Return the step as a formula; see :meth:`FormulaScheme.step`."""
        h = dynamics.step_size
        return lambda language, Y: Y + h * dynamics.rate(language, 0, Y)
