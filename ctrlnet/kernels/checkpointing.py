"""The adjoint sweep of a deep network from a few stored states, the rest recomputed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from checkpoint_schedules import EndForward, EndReverse, Forward, MultistageCheckpointSchedule, Reverse

from ctrlnet.kernels.layer_controls import LayerControls
from ctrlnet.kernels.sweep import Sweep

__all__ = ["checkpointed_adjoint"]


def checkpointed_adjoint(
    sweep: Sweep, controls: LayerControls, h: np.ndarray, initial: np.ndarray, snapshots: int,
    final_adjoint: Callable[[np.ndarray], np.ndarray],
) -> tuple[LayerControls, np.ndarray, int]:
    r"""Propagate a chunk and run its adjoint with at most ``snapshots`` states stored.

    The schedule is the binomial one, which recomputes least for its memory (Griewank and Walther, "Algorithm
    799: revolve", 2000), from the package ``checkpoint_schedules``.

    Parameters
    ----------
    initial
        Y_0 of the owned nodes, (owned, C, images).
    snapshots
        At least 1.
    final_adjoint
        Called once with the owned rows of Y_N; returns :math:`\lambda_N`, which is overwritten.

    Returns
    -------
    derivative, lam, layers
        This rank's part of the derivative, :math:`\lambda_0`, and how many layers were propagated.

    Raises
    ------
    ValueError
        If there is no room for a single snapshot.
    """
    if snapshots < 1:
        raise ValueError(f"Checkpointing needs room for at least one state, received snapshots={snapshots!r}.")
    layers, images = len(h), initial.shape[-1]
    out = controls.zeros()
    pair = sweep.trajectory(1, images)  # a state and its successor, with what the adjoint of one layer needs
    adjoints: list[np.ndarray | None] = []
    stages = len(controls.biases) // layers  # rows of the controls that a step takes
    stored: dict[int, list[np.ndarray]] = {}
    pair.initial[:] = initial
    work, propagated = [part.copy() for part in pair.complete(0)], 0
    schedule = MultistageCheckpointSchedule(layers, min(snapshots, max(1, layers - 1)), 0)
    for action in schedule:
        if isinstance(action, Forward):
            if action.write_ics:
                stored[action.n0] = work
            for k in range(action.n0, action.n1):
                for part, value in zip(pair.complete(0), work, strict=True):
                    part[:] = value
                sweep.forward(controls.at_step(k, stages), h[k : k + 1], pair)
                work = [part.copy() for part in pair.complete(1)]
            propagated += action.n1 - action.n0
        elif isinstance(action, EndForward):
            adjoints = [final_adjoint(work[0]), *[None] * (len(work) - 1)]
        elif isinstance(action, Reverse):
            # The last layer run is the one to be reversed: its state and activation are still in the pair.
            k = action.n0
            out.at_step(k, stages).write(
                sweep.adjoint_step(controls.at_step(k, stages), h[k : k + 1], pair, adjoints))
        elif isinstance(action, EndReverse):
            break
        else:  # Copy or Move: a stored state becomes the current one
            work = stored[action.n]
    return out, adjoints[0], propagated
