"""Annotation on a tape of one's own."""

from __future__ import annotations

from pyadjoint import (
    Tape,
    annotate_tape,
    continue_annotation,
    get_working_tape,
    pause_annotation,
    set_working_tape,
)

__all__ = ["own_tape"]


class own_tape:
    """Context in which annotation goes to a new tape; the caller's tape and annotation state come back."""

    def __enter__(self) -> Tape:
        self._annotating = annotate_tape()
        self._outer = get_working_tape()
        tape = Tape()
        set_working_tape(tape)
        continue_annotation()
        return tape

    def __exit__(self, *_) -> None:
        set_working_tape(self._outer)
        if not self._annotating:
            pause_annotation()
