"""Tables on the screen whose numbers are the figures of ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

__all__ = ["WIDEST", "Column", "Table"]

WIDEST = 120  # characters of a line

Number = float | int
Cell = str | Number | tuple[Number, Number] | None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    head
        Its title.
    width
        Characters; cells stand on the right.
    form
        How a number is printed: a format without the width, for example ``.2f``.
    figure
        Name of its numbers among the figures, with a ``{}`` for each part of a row's key; empty: they enter none.
    spread
        Name of the second number of a cell that holds a mean and a standard deviation.
    """

    head: str
    width: int
    form: str = ""
    figure: str = ""
    spread: str = ""


class Table:
    """Rows of text and numbers; each number that is printed enters the figures by the same row's name.

    Parameters
    ----------
    columns
        Not wider than 120 characters in all.
    figures
        name -> number, to which rows are added.
    say
        Prints a line, on rank 0.

    Raises
    ------
    ValueError
        If the columns are too wide together.
    """

    def __init__(
        self, columns: Sequence[Column], figures: MutableMapping[str, Number], say: Callable[[str], None] = print
    ) -> None:
        width = sum(column.width + 1 for column in columns) - 1
        if width > WIDEST:
            raise ValueError(f"A table takes at most {WIDEST} characters a line, received columns of {width} in all. "
                             "Make some narrower, or leave some out.")
        self._columns, self._figures, self._say = tuple(columns), figures, say

    def head(self, title: str = "") -> None:
        """Print the columns' titles under a line with the table's, or under an empty one."""
        self._say(title)
        self._line([column.head for column in self._columns])

    def row(self, cells: Sequence[Cell], key: Sequence[object] | None = None, *, printed: bool = True) -> None:
        """Print a row, and enter its numbers into the figures.

        Parameters
        ----------
        cells
            One a column: text; a number; a mean and a standard deviation; None where there is nothing, which is
            printed as a dash and enters no figure.
        key
            What the columns' ``{}`` stand for. Default: the cells that hold text.
        printed
            False: the numbers only enter the figures.

        Raises
        ------
        ValueError
            If there are not as many cells as columns, or a figure of this name has been entered before.
        """
        if len(cells) != len(self._columns):
            raise ValueError(f"A row needs {len(self._columns)} cells, one a column; received {len(cells)}.")
        names = [c for c in cells if isinstance(c, str)] if key is None else key
        for column, cell in zip(self._columns, cells, strict=True):
            numbers = cell if isinstance(cell, tuple) else (cell,)
            for name, number in zip((column.figure, column.spread), numbers, strict=False):
                if name and number is not None and not isinstance(number, str):
                    self._enter(name.format(*names), number)
        if printed:
            self._line([_text(cell, column.form) for cell, column in zip(cells, self._columns, strict=True)])

    def _enter(self, name: str, number: Number) -> None:
        if name in self._figures:
            raise ValueError(f"The figure {name!r} is there already: rows need different keys.")
        self._figures[name] = float(number)

    def _line(self, texts: Sequence[str]) -> None:
        pairs = zip(texts, self._columns, strict=True)
        self._say(" ".join(f"{text:>{column.width}}" for text, column in pairs))


def _text(cell: Cell, form: str) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    return " ±".join(format(number, form) for number in (cell if isinstance(cell, tuple) else (cell,)))
