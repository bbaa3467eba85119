"""The command line of a script: its own options, those that many scripts share, and PETSc's.

Nothing here imports Firedrake, which hands PETSc the command line when it is imported: a script parses first and
imports Firedrake afterwards.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "CommandLine", "at_least_one", "divides_pixels", "existing_folder", "not_negative", "one_of", "positive"]

Check = Callable[[str, Any], "str | None"]

PIXELS = 28  # along each side of a digit


def at_least_one(option: str, value: float) -> str | None:
    """Return what is wrong with a value that must be a count, or None."""
    return None if value >= 1 else f"{option} must be at least 1, received {value}."


def positive(option: str, value: float) -> str | None:
    """Return what is wrong with a value that must be positive, or None."""
    return None if value > 0 else f"{option} must be positive, received {value}."


def not_negative(option: str, value: float) -> str | None:
    """Return what is wrong with a value that must not be negative, or None."""
    return None if value >= 0 else f"{option} must not be negative, received {value}."


def divides_pixels(option: str, value: int) -> str | None:
    """Return what is wrong with cells that 28 pixels are averaged to, or None."""
    if value >= 1 and PIXELS % value == 0:
        return None
    return f"{option}: {PIXELS} pixels do not divide into {value} cells: choose among 1, 2, 4, 7, 14, 28."


def existing_folder(option: str, value: str) -> str | None:
    """Return what is wrong with the folder of MNIST's files, or None."""
    found = Path(value).is_dir()
    return None if found else f"{option}: There is no folder {value}; it holds the four IDX files of MNIST."


def one_of(*allowed: float) -> Check:
    """Return the check of a value that must be one of some numbers."""
    *most, last = map(str, allowed)

    def check(option: str, value: float) -> str | None:
        found = value in allowed
        return None if found else f"{option} takes {', '.join(most)} and {last}; received {value}."

    return check


@dataclass(frozen=True)
class _Known:
    help: str
    check: Check | None = at_least_one
    kind: Callable[[str], Any] = int


_KNOWN = {
    "cells": _Known("cells along each side of the mesh", divides_pixels),
    "levels": _Known("cells along each side, coarsest first", divides_pixels),
    "features": _Known("channels of the state"),
    "layers": _Known("steps in time"),
    "time": _Known("final time T", positive, float),
    "diffusion": _Known("nu, in squared pixels per unit of time", not_negative, float),
    "readout": _Known("cells along each side of the classifier's mesh", divides_pixels),
    "rate": _Known("Adam's largest learning rate", positive, float),
    "batch": _Known("images of a mini-batch"),
    "data": _Known("folder with the four IDX files of MNIST (default: the shipped sample)", existing_folder, str),
    "train": _Known("training images"),
    "test": _Known("test images"),
    "seed": _Known("of all random numbers", None),
}


class CommandLine:
    """Options with defaults and checks; an option that is not among them goes to PETSc.

    Parameters
    ----------
    description
        The script's docstring, of which ``--help`` shows the first line.
    output
        Default of ``--output``, the folder of :class:`~ctrlnet.report.Run`'s results.
    **known
        Defaults of options that many scripts share, which have their help and their check here: ``cells``, ``levels``,
        ``features``, ``layers``, ``time``, ``diffusion``, ``readout``, ``rate``, ``batch``, ``data``, ``train``,
        ``test``, ``seed``. None: the option may be left out; of ``train`` and ``test`` it then means all images.

    Raises
    ------
    ValueError
        For a shared option that is not known.

    Examples
    --------
    >>> line = CommandLine(__doc__, "results/mine", features=4, layers=8, seed=0)
    >>> line.add("work", 200.0, "work units of a method", check=positive)
    >>> arguments = line.parse()
    >>> import firedrake  # PETSc reads what is left
    """

    def __init__(self, description: str, output: str, **known: Any) -> None:
        self._parser = argparse.ArgumentParser(description=description.split("\n")[0], allow_abbrev=False)
        self._checks: dict[str, Check] = {}
        for name, default in known.items():
            if name not in _KNOWN:
                raise ValueError(f"The shared options are {', '.join(_KNOWN)}; received {name!r}. Add it with add().")
            option = _KNOWN[name]
            text = option.help + (" (default: all)" if default is None and name in ("train", "test") else "")
            self.add(name, default, text, check=option.check, kind=option.kind)
        self._output = output

    def add(
        self, name: str, default: Any = None, help: str | None = None, *, check: Check | None = None,
        kind: Callable[[str], Any] | None = None, choices: Iterable[Any] | None = None, several: bool = False,
    ) -> None:
        """Declare an option.

        Parameters
        ----------
        name
            As an attribute of the arguments, with underscores; ``--the-name`` on the command line.
        default
            Its type is that of the values. A list, or ``several``: one or more values. False: a switch without a value.
        help
            One line for ``--help``, which adds the default.
        check
            A function (option, value) -> what is wrong, or None; of a list each value is checked. A value that was not
            given and has the default None is not.
        kind
            Type of the values where the default does not have it.
        choices
            The values that are allowed.
        """
        option = f"--{name.replace('_', '-')}"
        if default is False:
            self._parser.add_argument(option, action="store_true", help=help)
            return
        several = several or isinstance(default, list)
        if kind is None:
            sample = default[0] if isinstance(default, list) else default
            kind = str if sample is None else type(sample)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        if default is not None:
            help = f"{help} (default: {shown})" if help else f"default: {shown}"
        self._parser.add_argument(
            option, default=default, type=kind, choices=choices, nargs="+" if several else None, help=help)
        if check is not None:
            self._checks[name] = check

    def parse(self) -> argparse.Namespace:
        """Return the arguments; leave on the command line what PETSc is to read.

        Meshes are split over ranks in the same way each time from now on, so that ``--resume`` finds its nodes again.

        A value that is refused ends the script with exit status 2 and one line that names the option.
        """
        self._parser.add_argument("--output", default=self._output, help=f"folder (default: {self._output})")
        self._parser.add_argument(
            "--resume", action="store_true", help="go on with the trainings that the folder has checkpoints of")
        self.add("checkpoint", 10.0, "seconds between checkpoints", check=positive)
        os.environ.setdefault("SCOTCH_DETERMINISTIC", "1")
        arguments, sys.argv[1:] = self._parser.parse_known_args()
        for name, check in self._checks.items():
            given = getattr(arguments, name)
            for value in given if isinstance(given, list) else [given]:
                wrong = None if value is None else check(f"--{name.replace('_', '-')}", value)
                if wrong:
                    self.refuse(wrong)
        return arguments

    def one_each(self, name: str, values: Sequence[int], levels: Sequence[int], *, repeat: bool = False) -> list[int]:
        """Return one value for each level, which is what must be given; with ``repeat`` one may stand for all."""
        if repeat and len(values) == 1:
            return list(values) * len(levels)
        if len(values) != len(levels):
            what = "one number, or one" if repeat else "one number"
            self.refuse(f"--{name} takes {what} for each of the {len(levels)} levels.")
        return list(values)

    def refuse(self, message: str) -> NoReturn:
        """End the script with exit status 2 and a message."""
        self._parser.error(message)
