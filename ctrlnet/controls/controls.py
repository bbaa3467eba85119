"""Controls as Functions: a tuple whose entries have names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any, SupportsIndex

from firedrake import Cofunction, Function

__all__ = ["Controls", "ControlsLike", "as_controls"]


class Controls(tuple):
    """Named Functions, the controls of a problem or some of them; or Cofunctions, derivatives with respect to them.

    As a tuple it goes wherever pyadjoint takes a list of controls, and unpacks: ``s, b, W, beta = m``. An entry has
    its name as a key and as an attribute: ``m["s"] is m.s is m[0]``. The tuple does not change; the Functions'
    values may.

    Parameters
    ----------
    names
        One a Function.
    functions
        In the order of the names.

    Raises
    ------
    ValueError
        If the counts differ, or a name is given twice.
    """

    names: tuple[str, ...]

    def __new__(cls, names: Iterable[str], functions: Iterable[Function | Cofunction]) -> Controls:
        names, self = tuple(names), super().__new__(cls, functions)
        if len(names) != len(self) or len(set(names)) != len(names):
            raise ValueError(
                f"Controls need one name each, all different; received {len(self)} Functions and the names "
                f"{', '.join(names)}.")
        self.__dict__["names"] = names
        return self

    def __getnewargs__(self) -> tuple[tuple[str, ...], tuple[Function, ...]]:
        return self.names, tuple(self)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Controls do not change; for others take replace({name}=...).")

    def __getattr__(self, name: str) -> Function:
        if name in self.names:
            return self[name]
        raise AttributeError(f"These controls are {', '.join(self.names)}; there is no {name!r} among them.")

    def __getitem__(self, key: SupportsIndex | slice | str) -> Any:
        """Return an entry by its name or number; of a slice, a plain tuple."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self.names:
            raise KeyError(f"These controls are {', '.join(self.names)}; there is no {key!r} among them.")
        return super().__getitem__(self.names.index(key))

    def __repr__(self) -> str:
        return f"Controls({', '.join(self.names)})"

    def by_name(self) -> dict[str, Function]:
        """Return the Functions by their names."""
        return dict(zip(self.names, self, strict=True))

    def replace(self, **functions: Function) -> Controls:
        """Return the controls with other Functions in the places of the names given.

        Raises
        ------
        ValueError
            If there is no control of a name.
        """
        unknown = [n for n in functions if n not in self.names]
        if unknown:
            raise ValueError(f"There is no control {', '.join(unknown)} to replace; these are {', '.join(self.names)}.")
        return Controls(self.names, (self.by_name() | functions).values())

    def restricted(self, names: Sequence[str]) -> Controls:
        """Return the controls of the given names, in the order of the names.

        Raises
        ------
        ValueError
            If there is no control of a name.
        """
        if tuple(names) == self.names:
            return self
        missing = [n for n in names if n not in self.names]
        if missing:
            raise ValueError(f"The control {', '.join(missing)} is missing; these are {', '.join(self.names)}.")
        return Controls(names, [self[n] for n in names])

    def extended(self, other: Controls) -> Controls:
        """Return these controls followed by others of other names."""
        return Controls((*self.names, *other.names), (*self, *other))


# Controls, Functions by their names, or all Functions in order.
ControlsLike = Controls | Mapping[str, Function] | Sequence[Function]


@singledispatch
def as_controls(m: ControlsLike, *choices: Sequence[str]) -> Controls:
    """Return what stands for controls as Controls.

    Parameters
    ----------
    m
        Controls; a mapping from names to Functions; or Functions in the order of one of the choices.
    choices
        The names of Functions that come without; as many as there are Functions.

    Raises
    ------
    ValueError
        If the number of Functions is that of no choice.
    """
    functions = tuple(m)
    for names in choices:
        if len(names) == len(functions):
            return Controls(names, functions)
    raise ValueError(
        f"The controls are {' or '.join(', '.join(names) for names in choices)}; received {len(functions)} Functions "
        "instead. Give all of them in this order, or by name.")


@as_controls.register
def _(m: Controls, *choices: Sequence[str]) -> Controls:
    return m


@as_controls.register
def _(m: Mapping, *choices: Sequence[str]) -> Controls:
    return Controls(m.keys(), m.values())
