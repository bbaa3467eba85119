"""The course of an optimisation as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

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
        Accepted step length of the line search.
    work
        Cost of all sweeps so far, in image-node-layers of a forward sweep.
    seconds
        Wall-clock time since the start.
    """

    number: int
    objective: float
    loss: float
    gradient_norm: float
    step: float
    work: float
    seconds: float


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
        """Return one quantity over all iterations."""
        known = [f.name for f in fields(Iteration)]
        if name not in known:
            raise ValueError(f"An iteration has {', '.join(known)}; received {name!r}.")
        return [getattr(i, name) for i in self.iterations]

    def as_dict(self) -> dict:
        """Return plain data for a JSON file."""
        return {"reason": self.reason, "iterations": [asdict(i) for i in self.iterations]}

    def __str__(self) -> str:
        lines = [f"{'it':>4} {'objective':>12} {'loss':>12} {'|gradient|':>11} {'step':>9} {'seconds':>9}"]
        lines += [
            f"{i.number:4d} {i.objective:12.6f} {i.loss:12.6f} {i.gradient_norm:11.3e} {i.step:9.2e} {i.seconds:9.2f}"
            for i in self.iterations
        ]
        return "\n".join([*lines, f"stopped: {self.reason}"])
