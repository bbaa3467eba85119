"""A network as a discrete map, its propagation as a pyadjoint block, and the plain route, its oracle."""

from ctrlnet.network.network import Network
from ctrlnet.network.opening import FixedOpening, LearnedOpening, Opening
from ctrlnet.network.propagation import propagate

__all__ = ["FixedOpening", "LearnedOpening", "Network", "Opening", "propagate"]
