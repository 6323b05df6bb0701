"""Support for modules that were renamed: their old name imports, with a warning, until 0.3."""

from __future__ import annotations

import sys
from importlib import import_module

from fastsample._support.checks import warn_user


def moved(old: str, new: str) -> None:
    """Warn, and let the import of module `old`, which calls this function, return module `new`."""
    warn_user(f"{old} has moved to {new}; the old name goes with 0.3", DeprecationWarning)
    sys.modules[old] = import_module(new)
