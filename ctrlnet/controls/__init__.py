"""Functions of time, the set of all controls with its three views, and coordinates in their metric."""

from ctrlnet.controls.agreement import check_same, check_same_generators
from ctrlnet.controls.control_set import ControlSet
from ctrlnet.controls.controls import Controls, ControlsLike, as_controls
from ctrlnet.controls.coordinates import Coordinates, InnerProduct
from ctrlnet.controls.linear_map import mapped, products_of
from ctrlnet.controls.numbers import numbers_space
from ctrlnet.controls.parts import DistributedPart, Part, ReplicatedPart
from ctrlnet.controls.replicated import replicated
from ctrlnet.controls.spaces import ControlSpace
from ctrlnet.controls.times import checked_times, divided

__all__ = [
    "ControlSet", "ControlSpace", "Controls", "ControlsLike", "Coordinates", "DistributedPart", "InnerProduct", "Part",
    "ReplicatedPart", "as_controls", "check_same", "check_same_generators", "checked_times", "divided", "mapped",
    "numbers_space", "products_of", "replicated",
]
