"""Residual networks as time-dependent PDEs, trained by PDE-constrained optimisation.

A network is ``dY/dt = sigma(sum_j s_j(t) D_j Y + b(t))`` on a finite-element mesh: see :class:`Network`,
:class:`TrainingProblem` and the demos.

The public names are those of :mod:`ctrlnet.public`. They are loaded when the first of them is asked for, because that
imports Firedrake, which hands PETSc the command line once and for all: a script may first take its own arguments out
of it (:class:`ctrlnet.report.CommandLine`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ctrlnet.public import *  # noqa: F403 - what is public is listed there
else:

    def __getattr__(name):
        """Return a public name, a room, or ``__all__``."""
        if name == "__all__" or not name.startswith("_"):
            public = importlib.import_module("ctrlnet.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
            if name in globals():  # a room, which the import has made an attribute
                return globals()[name]
        raise AttributeError(f"module 'ctrlnet' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *importlib.import_module("ctrlnet.public").__all__})
