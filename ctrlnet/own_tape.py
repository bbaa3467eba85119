"""Annotation on a tape of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyadjoint import Tape, continue_annotation, set_working_tape, stop_annotating

__all__ = ["own_tape"]


@contextmanager
def own_tape() -> Iterator[Tape]:
    """Context in which annotation goes to a new tape; the caller's tape and annotation state come back."""
    with set_working_tape() as tape, stop_annotating():  # the latter for the state it restores
        continue_annotation()
        yield tape
