"""Right-hand sides of the state equation, one a file."""

from ctrlnet.dynamics.residual import Residual

__all__ = ["Residual"]
