"""Time-stepping schemes, one a file."""

from ctrlnet.integrators.forward_euler import ForwardEuler

__all__ = ["ForwardEuler"]
