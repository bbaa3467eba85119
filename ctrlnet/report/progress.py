"""Progress bars, on rank 0 alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from ctrlnet.storage.history import Iteration

__all__ = ["LevelProgress", "Progress"]


class Progress:
    """A bar that follows an optimisation: what an optimiser takes as its ``callback``.

    Parameters
    ----------
    title
        What stands before the bar.
    total
        Its end, in iterations or in units of ``position``. None: it is not known, iterations are counted.
    shown
        What is told of an iteration: ``loss`` or ``objective``.
    label
        What that is called. Default: the same.
    position
        A function of an iteration. Default: its number.
    unit
        Name of a unit of ``position``.
    width
        Characters for the title.
    visible
        Whether to draw it: on rank 0, see :meth:`Run.progress <ctrlnet.report.Run.progress>`.
    """

    def __init__(
        self, title: str, total: int | None = None, *, shown: str = "loss", label: str = "",
        position: Callable[[Iteration], int] | None = None, unit: str = "", width: int = 14, visible: bool = True,
    ) -> None:
        form = (f"{{desc}} |{{bar:24}}| {{n_fmt}}/{{total_fmt}}{unit and ' ' + unit} [{{elapsed}}{{postfix}}]"
                if total is not None else "{desc}: {n_fmt} iterations [{elapsed}{postfix}]")
        self._bar = tqdm(
            total=total, desc=title if total is None else f"{title:>{width}}", disable=not visible, file=sys.stdout,
            mininterval=0.5, bar_format=form)
        self._total, self._shown, self._label, self._position = total, shown, label or shown, position

    def __call__(self, iteration: Iteration) -> None:
        """Move the bar to an iteration."""
        place = iteration.number if self._position is None else self._position(iteration)
        self._bar.set_postfix_str(f"{self._label} {getattr(iteration, self._shown):.4f}", refresh=False)
        self._bar.update((place if self._total is None else min(place, self._total)) - self._bar.n)

    def advance(self) -> None:
        """Move the bar by one, where there is no iteration to show."""
        self._bar.update()

    def close(self) -> None:
        """Draw the bar for the last time."""
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LevelProgress:
    """A bar for each level of a multiscale training, one after the other; see :class:`Progress`.

    Parameters
    ----------
    titles, totals
        One a level, coarsest first.
    """

    def __init__(
        self, titles: Sequence[str], totals: Sequence[int], *, width: int = 14, visible: bool = True
    ) -> None:
        self._levels, self._width, self._visible = list(zip(titles, totals, strict=True)), width, visible
        self._number = -1
        self._bar: Progress | None = None

    def __call__(self, level: int, iteration: Iteration) -> None:
        """Move a level's bar to an iteration; the bar of the level before is closed."""
        if self._bar is None or level != self._number:
            self.close()
            title, total = self._levels[level]
            self._number, self._bar = level, Progress(title, total, width=self._width, visible=self._visible)
        self._bar(iteration)

    def close(self) -> None:
        """Draw the last bar for the last time."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> LevelProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
