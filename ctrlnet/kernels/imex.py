"""Sweeps whose steps are one of forward Euler followed by a fixed linear solve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctrlnet.kernels.sweep import FusedSweep, Trajectory

__all__ = ["ImplicitExplicitSweep", "LinearSolve"]

# (field of owned rows, transposed) -> the field, overwritten.
LinearSolve = Callable[[np.ndarray, bool], np.ndarray]


class ImplicitExplicitSweep:
    r"""Residual dynamics with a linear implicit part, :math:`G_k Y_{k+1} = Y_k + h_k \sigma(K_k Y_k + b_k)`.

    The explicit part is that of a :class:`FusedSweep`, whose interface this class has. The derivatives apply
    :math:`G_k^{-T}` where the sweep applies :math:`G_k^{-1}`; G does not depend on the controls.

    Parameters
    ----------
    explicit
        Sweep of the explicit part.
    solve
        h -> the maps :math:`G^{-1}` and :math:`G^{-T}` of a step of that size, on fields of a chunk.
    """

    fuses_chunks = False  # each layer's solve is a call of its own

    def __init__(self, explicit: FusedSweep, solve: Callable[[float], LinearSolve]):
        self.explicit = explicit
        self._solve = solve
        self._solves: dict[float, LinearSolve] = {}
        for name in ("table", "features", "dtype", "lanes", "image_block", "most_blocks", "image_derivatives",
                     "trajectory", "trajectory_bytes", "field"):
            setattr(self, name, getattr(explicit, name))

    def _implicit(self, h: float) -> LinearSolve:
        if h not in self._solves:
            self._solves[h] = self._solve(h)
        return self._solves[h]

    def _layer(self, trajectory: Trajectory, k: int) -> Trajectory:
        """The part of a trajectory that belongs to step k: the state before it and the one after it."""
        if trajectory.kept is None:
            order = (k % 2, (k + 1) % 2)
            states = trajectory.states if order == (0, 1) else trajectory.states[::-1]
            return Trajectory(states, None, trajectory.owned)
        return Trajectory(trajectory.states[k : k + 2], trajectory.kept[k : k + 1], trajectory.owned)

    def forward(self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectory: Trajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; return the owned rows of the final state, a view."""
        state = trajectory.initial
        for k in range(len(h)):
            step = slice(k, k + 1)
            state = self.explicit.forward(S[step], b[step], h[step], self._layer(trajectory, k))
            self._implicit(h[k])(state, False)
        return state

    def adjoint(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Run the transposed sweep, :math:`\lambda_k = (I + h\sigma' K)^T G^{-T} \lambda_{k+1}`.

        ``lam`` holds :math:`\lambda_N` and is overwritten by :math:`\lambda_0`; see :meth:`FusedSweep.adjoint`.
        """
        gS, gb = np.zeros(S.shape), np.zeros((len(h), self.features))
        for k in reversed(range(len(h))):
            step = slice(k, k + 1)
            self._implicit(h[k])(lam, True)
            gS[step], gb[step] = self.explicit.adjoint(S[step], h[step], self._layer(trajectory, k), lam)
        return gS, gb

    def adjoint_layer(
        self, S: np.ndarray, h: np.ndarray, pair: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the adjoint of one step; see :meth:`FusedSweep.adjoint_layer`."""
        return self.adjoint(S, h, pair, lam)

    def adjoint_each(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run :meth:`adjoint` with every image's derivative by itself; see :meth:`FusedSweep.adjoint_each`."""
        parts = []
        for k in reversed(range(len(h))):
            step = slice(k, k + 1)
            self._implicit(h[k])(lam, True)
            parts.insert(0, self.explicit.adjoint_each(S[step], h[step], self._layer(trajectory, k), lam))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def tangent(
        self, S: np.ndarray, dS: np.ndarray, db: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory
    ) -> np.ndarray:
        """Propagate a perturbation of (S, b, Y_0) along a trajectory; see :meth:`FusedSweep.tangent`."""
        change = tangent.initial
        for k in range(len(h)):
            step = slice(k, k + 1)
            change = self.explicit.tangent(
                S[step], dS[step], db[step], h[step], self._layer(trajectory, k), self._layer(tangent, k))
            self._implicit(h[k])(change, False)
        return change

    def second_order(
        self, S: np.ndarray, dS: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory,
        lam: np.ndarray, dlam: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Differentiate the adjoint sweep along a tangent; see :meth:`FusedSweep.second_order`."""
        gS, gb = np.zeros(S.shape), np.zeros((len(h), self.features))
        for k in reversed(range(len(h))):
            step, solve = slice(k, k + 1), self._implicit(h[k])
            solve(lam, True)
            solve(dlam, True)
            gS[step], gb[step] = self.explicit.second_order(
                S[step], dS[step], h[step], self._layer(trajectory, k), self._layer(tangent, k), lam, dlam)
        return gS, gb
