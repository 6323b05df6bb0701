"""Modules that have moved: the old name still imports for one version, with a warning."""

from __future__ import annotations

import sys
from importlib import import_module

from fastsample._support.checks import warn_user


def moved(old: str, new: str) -> None:
    """Make the import of the module `old`, now running, yield the module `new`, with a warning."""
    warn_user(f"{old} has moved to {new}; the old name goes with 0.3", DeprecationWarning)
    sys.modules[old] = import_module(new)
