"""Moving images, kernels and controls between meshes and resolutions."""

from __future__ import annotations

from ctrlnet.transfer.images import PixelProjection, average_pixels

__all__ = ["PixelProjection", "average_pixels"]
