"""Functions of time, the set of all controls with its three views, and coordinates in their metric."""

from ctrlnet.controls.control_set import ControlSet
from ctrlnet.controls.controls import Controls, ControlsLike, as_controls
from ctrlnet.controls.coordinates import Coordinates, InnerProduct
from ctrlnet.controls.numbers import numbers_space
from ctrlnet.controls.parts import DistributedPart, Part, ReplicatedPart
from ctrlnet.controls.spaces import ControlSpace

__all__ = [
    "ControlSet", "ControlSpace", "Controls", "ControlsLike", "Coordinates", "DistributedPart", "InnerProduct", "Part",
    "ReplicatedPart", "as_controls", "numbers_space",
]
