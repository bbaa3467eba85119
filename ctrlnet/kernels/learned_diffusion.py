r"""Sweeps whose steps end with a linear solve that depends on a learned parameter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ctrlnet.kernels.imex import ImplicitExplicitSweep, LinearSolve
from ctrlnet.kernels.sweep import FusedSweep, Trajectory

__all__ = ["LearnedDiffusionSweep"]


class LearnedDiffusionSweep(ImplicitExplicitSweep):
    r"""Residual dynamics with a learned linear implicit part, :math:`(I - e^{r_k} A) Y_{k+1} = X_k`.

    :math:`X_k = Y_k + h\sigma(K_k Y_k + b_k)` is the explicit step, and r the last column of the biases. Derivatives
    need no product with A, because :math:`e^{r}AY_{k+1} = Y_{k+1} - X_k`, and with :math:`p = G^{-T}\lambda_{k+1}` in
    the same way :math:`e^{r}A^Tp = p - \lambda_{k+1}`:

    .. math::
        dY_{k+1} &= G^{-1}(dX_k + dr_k Y_{k+1}) - dr_k Y_{k+1}, \qquad
        \frac{dJ}{dr_k} = \langle p - \lambda_{k+1}, Y_{k+1}\rangle, \\
        dp &= G^{-T}\bigl(d\lambda_{k+1} + dr_k (p - \lambda_{k+1})\bigr), \qquad
        d\frac{dJ}{dr_k} = \langle dp - d\lambda_{k+1}, Y_{k+1}\rangle + \langle p - \lambda_{k+1}, dY_{k+1}\rangle.

    Parameters
    ----------
    explicit
        Sweep of the explicit part.
    solve
        (h, r) -> the maps :math:`G^{-1}` and :math:`G^{-T}`.
    """

    def __init__(self, explicit: FusedSweep, solve: Callable[[float, float], LinearSolve]):
        super().__init__(explicit, None)
        self._solve = solve
        self._solves: dict[tuple[float, float], LinearSolve] = {}

    def _factorised(self, h: np.ndarray, r: np.ndarray) -> list[LinearSolve]:
        """Return the solves of all steps; those of other parameters are forgotten."""
        keys = list(zip(h.tolist(), r.tolist(), strict=True))
        known = self._solves
        self._solves = {key: known[key] if key in known else self._solve(*key) for key in keys}
        return [self._solves[key] for key in keys]

    def forward(self, S: np.ndarray, b: np.ndarray, h: np.ndarray, trajectory: Trajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; return the owned rows of the final state, a view."""
        biases, trajectory.parameters = b[:, :-1], b[:, -1].copy()
        state = trajectory.initial
        for k, solve in enumerate(self._factorised(h, trajectory.parameters)):
            step = slice(k, k + 1)
            state = self.explicit.forward(S[step], biases[step], h[step], self._layer(trajectory, k))
            solve(state, False)
        return state

    def _after(self, trajectory: Trajectory, k: int) -> np.ndarray:
        return trajectory.states[k + 1, : trajectory.owned]

    def _backwards(self, h: np.ndarray, trajectory: Trajectory):
        """Yield number, rows and solve of every step, the last one first."""
        solves = self._factorised(h, trajectory.parameters)
        for k in reversed(range(len(h))):
            yield k, slice(k, k + 1), solves[k]

    def adjoint(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the transposed sweep; see :meth:`FusedSweep.adjoint`. The last column of gb is that of r."""
        gS, gb = np.zeros(S.shape), np.zeros((len(h), self.features + 1))
        for k, step, solve in self._backwards(h, trajectory):
            change = -lam
            solve(lam, True)
            change += lam
            gb[k, -1] = _product(change, self._after(trajectory, k))
            gS[step], gb[step, :-1] = self.explicit.adjoint(S[step], h[step], self._layer(trajectory, k), lam)
        return gS, gb

    def adjoint_each(
        self, S: np.ndarray, h: np.ndarray, trajectory: Trajectory, lam: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run :meth:`adjoint` with every image's derivative by itself; see :meth:`FusedSweep.adjoint_each`."""
        parts = []
        for k, step, solve in self._backwards(h, trajectory):
            change = -lam
            solve(lam, True)
            change += lam
            each = np.einsum("nci,nci->i", change, self._after(trajectory, k))
            gS, gb = self.explicit.adjoint_each(S[step], h[step], self._layer(trajectory, k), lam)
            parts.insert(0, (gS, np.concatenate([gb, each[None, None]], axis=1)))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def tangent(
        self, S: np.ndarray, dS: np.ndarray, db: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory
    ) -> np.ndarray:
        """Propagate a perturbation of (S, b, r, Y_0) along a trajectory; see :meth:`FusedSweep.tangent`."""
        change, tangent.parameters = tangent.initial, db[:, -1].copy()
        for k, solve in enumerate(self._factorised(h, trajectory.parameters)):
            step, spread = slice(k, k + 1), tangent.parameters[k] * self._after(trajectory, k)
            change = self.explicit.tangent(
                S[step], dS[step], db[step, :-1], h[step], self._layer(trajectory, k), self._layer(tangent, k))
            change += spread
            solve(change, False)
            change -= spread
        return change

    def second_order(
        self, S: np.ndarray, dS: np.ndarray, h: np.ndarray, trajectory: Trajectory, tangent: Trajectory,
        lam: np.ndarray, dlam: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Differentiate the adjoint sweep along a tangent; see :meth:`FusedSweep.second_order`."""
        gS, gb = np.zeros(S.shape), np.zeros((len(h), self.features + 1))
        for k, step, solve in self._backwards(h, trajectory):
            first, second = -lam, -dlam
            solve(lam, True)
            first += lam
            dlam += tangent.parameters[k] * first
            solve(dlam, True)
            second += dlam
            gb[k, -1] = _product(second, self._after(trajectory, k)) + _product(first, self._after(tangent, k))
            gS[step], gb[step, :-1] = self.explicit.second_order(
                S[step], dS[step], h[step], self._layer(trajectory, k), self._layer(tangent, k), lam, dlam)
        return gS, gb


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """Return this rank's sum over nodes, features and images, in double precision."""
    return float(np.einsum("nci,nci->", a, b, dtype=np.float64))
