"""Plans: samplers compiled to tables of coefficients, with their checks and files.

``fs.plans.load("ays-sd15")`` is the plan of a published list of times, and ``fs.plans.published()``
names them all.
"""

from importlib import import_module
from typing import Any

_NAMES = ("load", "published")


def __getattr__(name: str) -> Any:
    """Find a public name in the room of samplers, on its first use: plans come before samplers."""
    if name not in _NAMES:
        raise AttributeError(f"module 'fastsample.plans' has no attribute {name!r}")
    globals()[name] = getattr(import_module("fastsample.samplers.published"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return list(_NAMES)
