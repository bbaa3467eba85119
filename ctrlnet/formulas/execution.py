"""What an operation finds where it is executed: fields, kernels and controls of one chunk on one mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ctrlnet.formulas.language import Pointwise

__all__ = ["Adjoints", "ControlRows", "Execution"]


class ControlRows(Protocol):
    """Controls at a step's stages, or a direction, or a total of derivatives: rows of arrays."""

    @property
    def coefficients(self) -> np.ndarray: ...

    @property
    def biases(self) -> np.ndarray: ...

    @property
    def parameters(self) -> np.ndarray: ...


class Execution(Protocol):
    """A program at work. ``values`` and ``changes`` are those of its operations, by their index.

    Attributes
    ----------
    controls, h
        Of the step.
    direction
        The change of the controls along which there is a tangent; None for a change of the inputs alone.
    inputs, input_changes, following
        Parts of the state before the step, their changes, and the state after it where it is known.
    inner, solvers
        The execution and the solver of each implicit stage, by its index.
    mesh, primitives
        Rows of operators and kernels.
    """

    values: list[Any]
    changes: list[Any]
    controls: Any
    direction: Any
    h: float
    inputs: list[np.ndarray]
    input_changes: list[Any]
    following: list[np.ndarray] | None
    mesh: Any
    primitives: Any

    @property
    def inner(self) -> Mapping[int, Any]: ...

    @property
    def solvers(self) -> Mapping[int, Any]: ...

    def buffer(self, what: str, index: int, part: int = 0) -> np.ndarray:
        """Return a field that belongs to an operation."""
        ...

    def pointwise(self, activation: Pointwise) -> Any:
        """Return the kernels with this activation."""
        ...

    def resolvent(self, c: float, r: float) -> Callable[[np.ndarray, bool], np.ndarray]:
        r"""Return the maps :math:`G^{-1}` and, with True, :math:`G^{-T}`, :math:`G = I - c e^r\Delta_h`, in place."""
        ...

    def update(self, field: np.ndarray, rows: str) -> None:
        """Fill the ghost rows that a set of operators reads."""
        ...


class Adjoints(Protocol):
    """Adjoints of the values of all operations, None where nothing was added yet."""

    def __getitem__(self, i: int) -> Any: ...

    def target(self, i: int) -> tuple[np.ndarray, bool]:
        """Return the field to add to, and whether it holds something yet."""
        ...

    def add(self, i: int, field: np.ndarray | None, factor: float = 1.0) -> None:
        """Add a multiple of a field."""
        ...

    def add_part(self, i: int, part: int, field: np.ndarray) -> None:
        """Add to one part of an operation with several results."""
        ...
