"""The course of an optimisation as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ctrlnet.controls import Controls
from ctrlnet.objective.work import SWEEP_COST

__all__ = ["History", "Iteration"]


@dataclass(frozen=True)
class Iteration:
    """One accepted iterate.

    Parameters
    ----------
    number
        0 is the starting point.
    objective, loss
        Loss plus regularisation, and the mean loss alone.
    gradient_norm
        Norm of the gradient in the controls' inner product.
    step
        Accepted step length of the line search, or radius of the trust region.
    work
        Cost of all sweeps so far, in image-node-layers of a forward sweep.
    seconds
        Wall-clock time since the start, without that of :attr:`accuracies` and of callbacks.
    krylov
        Products with the (Gauss-Newton) Hessian since the iteration before.
    sweeps
        Image-node-layers of each kind of sweep so far; ``work`` is their weighted sum.
    accuracies
        Shares of correctly classified images by name, where asked for.
    images
        Size of the sample that the objective is the average over.
    controls
        All controls of the iterate, in what a callback is given; a history has none of them.
    """

    number: int
    objective: float
    loss: float
    gradient_norm: float
    step: float
    work: float
    seconds: float
    krylov: int = 0
    sweeps: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SWEEP_COST, 0.0))
    accuracies: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    controls: Controls | None = field(default=None, repr=False, compare=False)

    @property
    def regularisation(self) -> float:
        return self.objective - self.loss


@dataclass
class History:
    """Iterations of one run and why it stopped."""

    iterations: list[Iteration] = field(default_factory=list)
    reason: str = "not run"

    def append(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)

    @property
    def last(self) -> Iteration:
        return self.iterations[-1]

    def column(self, name: str) -> list[float]:
        """Return one quantity over all iterations; an accuracy by its own name."""
        known = [f.name for f in fields(Iteration) if f.compare] + ["regularisation"]
        measured = self.iterations[0].accuracies if self.iterations else {}
        if name in measured:
            return [i.accuracies[name] for i in self.iterations]
        if name not in known:
            raise ValueError(f"An iteration has {', '.join([*known, *measured])}; received {name!r}.")
        return [getattr(i, name) for i in self.iterations]

    def reached(self, name: str, target: float) -> Iteration | None:
        """Return the first iteration in which a quantity is at most the target; None if it never is."""
        return next((i for i, v in zip(self.iterations, self.column(name), strict=True) if v <= target), None)

    def as_dict(self) -> dict:
        """Return plain data for a JSON file."""
        rows = [
            {f.name: getattr(i, f.name) for f in fields(i) if f.compare} | {"regularisation": i.regularisation}
            for i in self.iterations]
        return {"reason": self.reason, "iterations": rows}

    def __str__(self) -> str:
        measured = list(self.iterations[0].accuracies) if self.iterations else []
        lines = [f"{'it':>4} {'objective':>12} {'loss':>12} {'|gradient|':>11} {'step':>9} {'krylov':>6} {'seconds':>9}"
                 + "".join(f" {name + ' %':>9}" for name in measured)]
        lines += [
            f"{i.number:4d} {i.objective:12.6f} {i.loss:12.6f} {i.gradient_norm:11.3e} {i.step:9.2e} {i.krylov:6d} "
            f"{i.seconds:9.2f}" + "".join(f" {100 * i.accuracies[name]:9.2f}" for name in measured)
            for i in self.iterations
        ]
        return "\n".join([*lines, f"stopped: {self.reason}"])
