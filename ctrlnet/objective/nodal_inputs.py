"""Nodal values of a sample's inputs, chunk by chunk, kept as far as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrlnet.fields.inputs import Inputs, NodalMap
from ctrlnet.network.network import Network
from ctrlnet.objective.chunks import Chunk

__all__ = ["NodalInputs", "nodal_map_for"]


class NodalInputs:
    """What a network opens: x (owned nodes, q, images) of each chunk, in the sweep's precision.

    Parameters
    ----------
    inputs
        Of the sample.
    nodal_map
        To the nodes of the network's space.
    dtype
        Of the states.
    chunks
        Of this ensemble member's images.
    most_bytes
        The most that are kept; the other chunks' are made anew each time.
    """

    def __init__(
        self, inputs: Inputs, nodal_map: NodalMap, dtype: np.dtype, chunks: Sequence[Chunk], most_bytes: int
    ):
        self._inputs, self._map, self._dtype = inputs, nodal_map, dtype
        owned = nodal_map.V.dof_dset.size
        sizes = np.array([owned * inputs.channels * chunk.images * dtype.itemsize for chunk in chunks])
        fitting = int(np.searchsorted(np.cumsum(sizes), most_bytes, side="right"))
        self._kept: dict[int, np.ndarray | None] = dict.fromkeys(chunk.number for chunk in chunks[:fitting])
        self.nbytes = int(sizes[:fitting].sum())  # of what is kept once it is made

    def __getitem__(self, chunk: Chunk) -> np.ndarray:
        known = self._kept.get(chunk.number)
        if known is None:
            values = self._map.nodal(self._inputs, chunk.start, chunk.stop)
            known = np.ascontiguousarray(values, dtype=self._dtype)
            if chunk.number in self._kept:
                self._kept[chunk.number] = known
        return known


def nodal_map_for(network: Network, inputs: Inputs, given: NodalMap | None = None) -> NodalMap:
    """Return the given map of inputs to nodal values of a network's space, or by default the inputs' own.

    Raises
    ------
    ValueError
        If the inputs have other channels than the network opens, or the map takes other inputs or is one to another
        space.
    """
    opening = network.opening
    if inputs.channels != opening.channels:
        raise ValueError(
            f"The inputs have {inputs.channels} channel(s), the network opens {opening.channels}. Build it as "
            f"Network(..., opening=FixedOpening.of_channels({opening.features}, {inputs.channels})), or with a "
            "LearnedOpening.")
    if given is None:
        return inputs.onto(network.space)
    if given.V != network.space:
        raise ValueError(
            f"The inputs are needed on {network.space}, but the map takes them to {given.V}. Build it for the "
            "network's own space.")
    given.check(inputs)
    return given
