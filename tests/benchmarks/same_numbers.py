"""Loss and gradient of ctrlnet and of PyTorch on the same network and data, on a periodic grid.

On a periodic mesh every node has the interior stencil, so the finite-element operators are exactly 3x3 convolutions
with circular padding. (The timed networks differ at the boundary: there the operators are one-sided, and PyTorch
pads with zeros, its cheapest choice.)
"""

from __future__ import annotations

import itertools

import numpy as np
from channel import Worker

__all__ = ["TOLERANCE", "largest_difference"]

TOLERANCE = {"double": 1e-11, "single": 2e-4}


def _stencils(h: float) -> np.ndarray:
    """Return the nine stencils (9, 3, 3), indexed by offsets [x, y], as finite differences."""
    one_axis = [np.array([0, 1, 0]), np.array([-1, 0, 1]) / (2 * h), np.array([1, -2, 1]) / h**2]
    return np.array([np.outer(along_x, along_y) for along_x, along_y in itertools.product(one_axis, one_axis)])


def largest_difference(
    ctrlnet: Worker, torch: Worker, precision: str, features: int, layers: int, split_images: bool = False,
) -> float:
    """Return the largest difference of loss and derivatives, each relative to its largest entry."""
    cells, images = 28, 32
    ctrlnet.ask("build", key="check", cells=cells, features=features, images=images, layers=layers,
                precision=precision, seed=1, periodic=True, split_images=split_images)
    parts = ctrlnet.ask("snapshot", key="check")
    ctrlnet.ask("drop")
    ours = parts[0]
    # Ranks have some of the nodes, or all nodes of some of the images.
    places = ours["places"] if split_images else np.concatenate([p["places"] for p in parts])
    nodal = np.concatenate([p["nodal"] for p in parts], axis=1 if split_images else 0)
    width = ours["side"] / cells
    # A node on the seam has the coordinate of either side.
    grid = np.rint(places / width).astype(int) % cells

    def on_grid(rows: np.ndarray) -> np.ndarray:
        """Nodes first, in the mesh's order -> two axes x, y first."""
        out = np.empty((cells, cells, *rows.shape[1:]))
        out[grid[:, 0], grid[:, 1]] = rows
        return out

    def weights(rows: np.ndarray) -> np.ndarray:
        """(nodes * C, K) -> (C * x * y, K)."""
        fields = on_grid(rows.reshape(cells**2, features, -1))
        return np.moveaxis(fields, 2, 0).reshape(features * cells**2, -1)

    Y = np.zeros((images, features, cells, cells))
    Y[:, 0] = np.moveaxis(on_grid(nodal), -1, 0)
    theirs = torch.ask(
        "check", Y=Y, labels=ours["labels"], S=ours["S"], b=ours["b"], W=weights(ours["W"]), beta=ours["beta"],
        stencils=_stencils(width), step=ours["step"], mass=width**2)[0]
    expected = {name: ours[name] for name in ("loss", "gS", "gb", "gbeta")} | {"gW": weights(ours["gW"])}
    return max(float(np.abs(theirs[name] - value).max() / np.abs(value).max()) for name, value in expected.items())
