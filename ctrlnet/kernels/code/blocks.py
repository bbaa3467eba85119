"""Register blocks: how many features and SIMD vectors of images the inner loops hold at once."""

from __future__ import annotations

import math

__all__ = ["BLOCK", "feature_blocks", "vectors_of"]

BLOCK = 8  # features of one register block


def feature_blocks(features: int, largest: int = BLOCK) -> list[tuple[int, int]]:
    """Split the features into (start, size) blocks of nearly equal size."""
    count = math.ceil(features / largest)
    edges = [features * k // count for k in range(count + 1)]
    return [(a, b - a) for a, b in zip(edges, edges[1:], strict=False)]


def vectors_of(features: int) -> int:
    """Return the vectors of images that a register block holds; a chunk's are a multiple of it."""
    return 4 if min(features, BLOCK) <= 6 else 2
