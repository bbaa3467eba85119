"""Time-stepping schemes, one a file."""

from ctrlnet.integrators.forward_euler import ForwardEuler
from ctrlnet.integrators.imex import IMEX
from ctrlnet.integrators.implicit import BackwardEuler, ImplicitMidpoint
from ctrlnet.integrators.irksome import Irksome
from ctrlnet.integrators.runge_kutta import RungeKutta, Tableau, heun, midpoint, rk4, ssp3
from ctrlnet.integrators.stoermer_verlet import StoermerVerlet

__all__ = [
    "IMEX", "BackwardEuler", "ForwardEuler", "ImplicitMidpoint", "Irksome", "RungeKutta", "StoermerVerlet", "Tableau",
    "heun", "midpoint", "rk4", "ssp3",
]
