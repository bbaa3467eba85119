"""Waiting for the machine: another program on a core distorts a comparison of programs that use all of them."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["Patience"]

_SAMPLE = 0.1
_BUSY = 0.2  # of one core


class Patience:
    """A limited number of seconds to spend on waiting until no other program computes.

    To be used while all measuring processes sleep: whatever runs then is not ours. Where the system does not tell
    (no /proc/stat), it only pauses, so that the last program's threads leave the cores.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.spent = 0.0

    def wait(self) -> None:
        """Return when the cores were idle for a moment, or when patience has run out."""
        time.sleep(0.05)
        while True:
            before = _busy_seconds()
            time.sleep(_SAMPLE)
            if before is None or _busy_seconds() - before < _BUSY * _SAMPLE or self.spent >= self.seconds:
                return
            self.spent += _SAMPLE


def _busy_seconds() -> float | None:
    """Return the seconds that all cores have been busy since the machine started."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return None
    user, nice, system = map(int, counters.read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / 100
