r"""Work of training, counted in propagations.

A sweep's work is (images) x (nodes) x (layers), times what the sweep costs in units of a forward sweep. A
forward sweep applies K once; the adjoint applies its transpose and accumulates the gradient; the tangent
applies K and dK; the second-order sweep does three applications and two accumulations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SWEEP_COST", "Work"]

SWEEP_COST = {"forward": 1, "adjoint": 2, "tangent": 2, "second_order": 5}


@dataclass
class Work:
    """Sweeps counted as images x nodes x layers, by kind.

    Real images count, padding does not; the nodes are those of all ranks.
    """

    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SWEEP_COST, 0.0))

    def add(self, kind: str, images: int, nodes: int, layers: int) -> None:
        """Count one sweep."""
        self.counts[kind] += float(images) * nodes * layers

    def copy(self) -> Work:
        """Return a reading of the counter."""
        return Work(dict(self.counts))

    def __sub__(self, earlier: Work) -> Work:
        """Return what was counted since an earlier reading."""
        return Work({kind: count - earlier.counts[kind] for kind, count in self.counts.items()})

    @property
    def total(self) -> float:
        """Cost of everything counted, in image-node-layers of a forward sweep."""
        return sum(SWEEP_COST[kind] * count for kind, count in self.counts.items())

    def units(self, images: int, nodes: int, layers: int) -> float:
        """Return the total in work units: one forward sweep of the given sample, mesh and depth."""
        return self.total / (float(images) * nodes * layers)

    def sweeps(self, kind: str, images: int, nodes: int, layers: int) -> float:
        """Return how many full sweeps of a kind over the given sample were run."""
        return self.counts[kind] / (float(images) * nodes * layers)
