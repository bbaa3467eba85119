r"""Objects as plain data: what a file says of a network's parts, and how they are made again from it.

A value is described by its class and its arguments, which are described alike, down to numbers and texts. What a user
wrote, a right-hand side, a form, an activation, is described by its name alone: whoever reads the file gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ctrlnet import dynamics, integrators
from ctrlnet.dynamics import activations
from ctrlnet.dynamics.activations import Activation, SmoothedRelu
from ctrlnet.dynamics.system import Sum
from ctrlnet.network.opening import FixedOpening, LearnedOpening
from ctrlnet.objective.losses import LeastSquares, Logistic, SoftmaxCrossEntropy
from ctrlnet.operators.forms import Along, AlongField, Dirichlet, Operator, SecondAlong
from ctrlnet.operators.sphere import east, north

__all__ = ["Reader", "described"]

# Classes whose arguments are their fields.
_VALUES: dict[str, type] = {kind.__name__: kind for kind in (
    dynamics.Antisymmetric, dynamics.Diffusion, dynamics.Hamiltonian, dynamics.Hyperbolic, dynamics.Parabolic,
    dynamics.ReactionDiffusion, dynamics.Residual, dynamics.UserDynamics, Sum, SmoothedRelu, Activation,
    integrators.BackwardEuler, integrators.ForwardEuler, integrators.IMEX, integrators.ImplicitMidpoint,
    integrators.Irksome, integrators.RungeKutta, integrators.StoermerVerlet, integrators.Tableau,
    LeastSquares, Logistic, SoftmaxCrossEntropy, Along, AlongField, Dirichlet, SecondAlong, Operator)}
# Classes that say what their arguments were.
_OTHERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    FixedOpening: lambda opening: {"matrix": opening.start},
    LearnedOpening: lambda opening: {
        "features": opening.features, "channels": opening.channels, "start": opening.start},
}
_KINDS: dict[str, type] = _VALUES | {kind.__name__: kind for kind in _OTHERS}
# Those that have a name for a user's function that has none.
_NAMED = Operator, Activation, dynamics.UserDynamics
# Values that are known by a name.
_CONSTANTS: dict[str, Any] = {
    "tanh": activations.tanh, "identity": activations.identity, "relu": activations.relu, "east": east, "north": north}


def described(value: Any) -> Any:
    """Return what a file is to say of a value: texts, numbers, lists and dictionaries of such.

    Raises
    ------
    ValueError
        If it is what a user wrote, and has no name.
    """
    for name, constant in _CONSTANTS.items():
        if value is constant:
            return {"constant": name}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, tuple | list):
        return [described(entry) for entry in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): described(entry) for key, entry in value.items()}}
    kind = type(value)
    if _KINDS.get(kind.__name__) is not kind:
        return _given(value)
    arguments = _OTHERS[kind](value) if kind in _OTHERS else {
        f.name: getattr(value, f.name) for f in fields(value) if f.init}
    try:
        return {"kind": kind.__name__, "arguments": {name: described(v) for name, v in arguments.items()}}
    except _NamelessError:
        if kind not in _NAMED:
            raise
        return _given(value)


class _NamelessError(ValueError):
    """A user's own has no name."""


def _given(value: Any) -> dict[str, str]:
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    if name is None and not callable(value):
        name = type(value).__name__
    if not isinstance(name, str) or name == "<lambda>":
        raise _NamelessError(
            f"A file names what a user wrote, and {value!r} has no name. Define it by def, and give it back by that "
            "name when the file is read.")
    return {"given": name}


class Reader:
    """Makes values from their descriptions.

    Parameters
    ----------
    given
        What users wrote, by the names that files have for it.
    """

    def __init__(self, given: Mapping[str, Any] | None = None):
        self._given = {} if given is None else dict(given)

    def made(self, description: Any) -> Any:
        """Return the value that was described; lists as tuples.

        Raises
        ------
        ValueError
            If it needs something by a name that was not given, or of a kind that there is not.
        """
        if isinstance(description, list):
            return tuple(self.made(entry) for entry in description)
        if not isinstance(description, dict):
            return description
        if "constant" in description:
            return _CONSTANTS[description["constant"]]
        if "array" in description:
            return np.array(description["array"])
        if "mapping" in description:
            return {key: self.made(entry) for key, entry in description["mapping"].items()}
        if "given" in description:
            return self._by_name(description["given"])
        kind = description["kind"]
        if kind not in _KINDS:
            raise ValueError(f"The file has a {kind}, which this version of ctrlnet does not know.")
        return _KINDS[kind](**{name: self.made(entry) for name, entry in description["arguments"].items()})

    def _by_name(self, name: str) -> Any:
        if name not in self._given:
            raise ValueError(
                f"The file's network has something of a user's own, {name!r}; a file has its name alone. Give it back: "
                f"given={{{name!r}: ...}}.")
        return self._given[name]
