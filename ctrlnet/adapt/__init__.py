"""Time steps from the network's own error estimates."""

from ctrlnet.adapt.depth import AdaptiveDepth, DepthError, DepthEstimate, adapt_depth

__all__ = ["AdaptiveDepth", "DepthError", "DepthEstimate", "adapt_depth"]
