r"""Sweeps whose steps are one of forward Euler followed by a linear solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ctrlnet.kernels.code.arrays import LinearSolve
from ctrlnet.kernels.fused.sweep import FusedSweep
from ctrlnet.kernels.fused.trajectory import FusedTrajectory
from ctrlnet.kernels.layer_controls import LayerControls

__all__ = ["ImplicitExplicitSweep"]


class ImplicitExplicitSweep:
    r"""Residual dynamics with a linear implicit part, :math:`(I - e^{r_k} A) Y_{k+1} = X_k`.

    :math:`X_k = Y_k + h\sigma(K_k Y_k + b_k)` is the explicit step, that of a :class:`FusedSweep`, and r the learned
    parameter; where nothing is learned, 0. With :math:`G_k = I - e^{r_k}A`, the derivatives apply :math:`G_k^{-T}`
    where the sweep applies :math:`G_k^{-1}`. That in r needs no product with A, because
    :math:`e^{r}AY_{k+1} = Y_{k+1} - X_k`, and with :math:`p = G^{-T}\lambda_{k+1}` in the same way
    :math:`e^{r}A^Tp = p - \lambda_{k+1}`:

    .. math::
        dY_{k+1} &= G^{-1}(dX_k + dr_k Y_{k+1}) - dr_k Y_{k+1}, \qquad
        \frac{dJ}{dr_k} = \langle p - \lambda_{k+1}, Y_{k+1}\rangle, \\
        dp &= G^{-T}\bigl(d\lambda_{k+1} + dr_k (p - \lambda_{k+1})\bigr), \qquad
        d\frac{dJ}{dr_k} = \langle dp - d\lambda_{k+1}, Y_{k+1}\rangle + \langle p - \lambda_{k+1}, dY_{k+1}\rangle.

    The same steps operation by operation give the same numbers; on 28 x 28 cells with 4 and 8 features this sweep takes
    0.67 of their time forwards and 0.3 backwards (``python tests/benchmarks/bench_libraries.py --parts imex``).

    A :class:`~ctrlnet.kernels.sweep.Sweep` and an :class:`~ctrlnet.kernels.sweep.ImageSweep`. Each layer's solve is a
    call of its own, so chunks are not run in one.

    Parameters
    ----------
    explicit
        Sweep of the explicit part.
    solve
        (h, r) -> the maps :math:`G^{-1}` and :math:`G^{-T}` of a step, on fields of a chunk; it keeps what will be used
        again.
    """

    chunkwise = None

    def __init__(self, explicit: FusedSweep, solve: Callable[[float, float], LinearSolve]):
        self._explicit, self._solve = explicit, solve
        self.table, self.features, self.dtype = explicit.table, explicit.features, explicit.dtype
        self.image_block, self.most_blocks = explicit.image_block, explicit.most_blocks

    @property
    def imagewise(self) -> ImplicitExplicitSweep:
        return self

    def trajectory(self, layers: int, images: int, keep: bool = True) -> FusedTrajectory:
        return self._explicit.trajectory(layers, images, keep)

    def trajectory_bytes(self, layers: int, images: int) -> int:
        return self._explicit.trajectory_bytes(layers, images)

    def field(self, images: int) -> np.ndarray:
        return self._explicit.field(images)

    def _solves(self, controls: LayerControls, h: np.ndarray) -> list[LinearSolve]:
        """Return the solves of all steps."""
        learned = controls.parameters[:, 0] if controls.parameters.shape[1] else np.zeros(len(h))
        made: dict[tuple[float, float], LinearSolve] = {}
        keys = list(zip(h.tolist(), learned.tolist(), strict=True))
        for key in keys:
            if key not in made:
                made[key] = self._solve(*key)
        return [made[key] for key in keys]

    def _layer(self, trajectory: FusedTrajectory, k: int) -> FusedTrajectory:
        """The part of a trajectory that belongs to step k: the state before it and the one after it."""
        if trajectory.kept is None:
            order = (k % 2, (k + 1) % 2)
            states = trajectory.states if order == (0, 1) else trajectory.states[::-1]
            return FusedTrajectory(states, None, trajectory.owned)
        return FusedTrajectory(trajectory.states[k : k + 2], trajectory.kept[k : k + 1], trajectory.owned)

    def _backwards(
        self, controls: LayerControls, h: np.ndarray
    ) -> Iterator[tuple[int, LayerControls, np.ndarray, LinearSolve]]:
        """Yield number, controls, size and solve of every step, the last one first."""
        solves = self._solves(controls, h)
        for k in reversed(range(len(h))):
            yield k, controls.at_step(k), h[k : k + 1], solves[k]

    def forward(self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory) -> np.ndarray:
        """Propagate ``trajectory.initial``; see :meth:`Sweep.forward`."""
        state = trajectory.initial
        for k, solve in enumerate(self._solves(controls, h)):
            state = self._explicit.forward(controls.at_step(k), h[k : k + 1], self._layer(trajectory, k))
            solve(state, False)
        return state

    def adjoint(
        self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory, lam: np.ndarray
    ) -> LayerControls:
        r"""Run the transposed sweep, :math:`\lambda_k = (I + h\sigma' K)^T G^{-T} \lambda_{k+1}`."""
        out = controls.zeros()
        learned = out.parameters.shape[1]
        for k, step, size, solve in self._backwards(controls, h):
            change = -lam if learned else None
            solve(lam, True)
            if learned:
                change += lam
                out.parameters[k] = _product(change, trajectory.states[k + 1, : trajectory.owned])
            part = self._explicit.adjoint(step, size, self._layer(trajectory, k), lam)
            out.coefficients[k], out.biases[k] = part.coefficients[0], part.biases[0]
        return out

    def adjoint_step(
        self, controls: LayerControls, h: np.ndarray, pair: FusedTrajectory, adjoints: list[np.ndarray | None]
    ) -> LayerControls:
        """Run the adjoint of one step; see :meth:`Sweep.adjoint_step`."""
        (lam,) = adjoints
        return self.adjoint(controls, h, pair, lam)

    def adjoint_each(
        self, controls: LayerControls, h: np.ndarray, trajectory: FusedTrajectory, lam: np.ndarray
    ) -> LayerControls:
        """Run :meth:`adjoint` image by image; see :meth:`ImageSweep.adjoint_each`."""
        learned = controls.parameters.shape[1]
        parts: list[tuple[np.ndarray, ...]] = []
        for k, step, size, solve in self._backwards(controls, h):
            change = -lam if learned else None
            solve(lam, True)
            each = np.zeros((1, learned, trajectory.images), self.dtype)
            if learned:
                change += lam
                each[0, 0] = np.einsum("nci,nci->i", change, trajectory.states[k + 1, : trajectory.owned])
            part = self._explicit.adjoint_each(step, size, self._layer(trajectory, k), lam)
            parts.insert(0, (part.coefficients, part.biases, each))
        return LayerControls(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def tangent(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: FusedTrajectory,
        tangent: FusedTrajectory,
    ) -> np.ndarray:
        """Propagate a perturbation along a trajectory; see :meth:`Sweep.tangent`."""
        change, learned = tangent.initial, controls.parameters.shape[1]
        for k, solve in enumerate(self._solves(controls, h)):
            change = self._explicit.tangent(
                controls.at_step(k), direction.at_step(k), h[k : k + 1], self._layer(trajectory, k),
                self._layer(tangent, k))
            if not learned:
                solve(change, False)
                continue
            spread = direction.parameters[k, 0] * trajectory.states[k + 1, : trajectory.owned]
            change += spread
            solve(change, False)
            change -= spread
        return change

    def second_order(
        self, controls: LayerControls, direction: LayerControls, h: np.ndarray, trajectory: FusedTrajectory,
        tangent: FusedTrajectory, lam: np.ndarray, dlam: np.ndarray,
    ) -> LayerControls:
        """Differentiate the adjoint sweep along a tangent; see :meth:`Sweep.second_order`."""
        out = controls.zeros()
        learned = out.parameters.shape[1]
        for k, step, size, solve in self._backwards(controls, h):
            if learned:
                first, second = -lam, -dlam
                solve(lam, True)
                first += lam
                dlam += direction.parameters[k, 0] * first
                solve(dlam, True)
                second += dlam
                after, moved = (t.states[k + 1, : t.owned] for t in (trajectory, tangent))
                out.parameters[k] = _product(second, after) + _product(first, moved)
            else:
                solve(lam, True)
                solve(dlam, True)
            part = self._explicit.second_order(
                step, direction.at_step(k), size, self._layer(trajectory, k), self._layer(tangent, k), lam, dlam)
            out.coefficients[k], out.biases[k] = part.coefficients[0], part.biases[0]
        return out


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """Return this rank's sum over nodes, features and images, in double precision."""
    return float(np.einsum("nci,nci->", a, b, dtype=np.float64))
