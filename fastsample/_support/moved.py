"""Modules that have moved: the old name still works for one version, with a warning."""

from __future__ import annotations

import sys
from importlib import import_module

from fastsample._support.checks import warn_user


def moved(old: str, new: str) -> None:
    """Let the module named `old`, which is being imported, be the module named `new`."""
    warn_user(f"{old} has moved to {new}; the old name goes with 0.3", DeprecationWarning)
    sys.modules[old] = import_module(new)
