"""Ctrl-C and SIGTERM put off until what was computed is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "Interruption"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Context in which a first Ctrl-C or SIGTERM is noted instead of obeyed; a second one ends the process at once.

    Contexts nest, and share what was noted: what ends an inner loop ends the outer ones too. One that nobody asked
    about by :attr:`came` before the outermost context ends is obeyed there.

    Attributes
    ----------
    came
        Whether a signal came, on this rank; who asks promises to act upon it.
    """

    _outermost: Interruption | None = None

    def __init__(self) -> None:
        self._number: int | None = None
        self._heard = False
        self._handlers: dict[int, Any] = {}  # what the signals did before

    def __enter__(self) -> Interruption:
        if Interruption._outermost is None:
            Interruption._outermost = self
            self._number, self._heard = None, False
            if threading.current_thread() is threading.main_thread():  # others cannot handle signals
                self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return Interruption._outermost

    @property
    def came(self) -> bool:
        self._heard = self._heard or self._number is not None
        return self._number is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            raise KeyboardInterrupt
        self._number = number

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if Interruption._outermost is not self:
            return
        Interruption._outermost = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._number is not None and not self._heard and kind is None:
            signal.raise_signal(self._number)
