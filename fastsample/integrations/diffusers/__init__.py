"""Pipelines of diffusers: a scheduler for them, and their networks as a `Denoiser`.

``FastSampleScheduler.from_scheduler(pipe.scheduler)`` runs this package's samplers inside a
pipeline; ``denoiser(pipe)`` takes the network out of it, for `fastsample.sample`, `tune` and the
rest. diffusers is optional: ``pip install 'fastsample[diffusers]'``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsample.integrations.diffusers.network import denoiser as denoiser
    from fastsample.integrations.diffusers.scheduler import (
        FastSampleScheduler as FastSampleScheduler,
    )

_PLACES = {"FastSampleScheduler": "scheduler", "denoiser": "network"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(
            f"module 'fastsample.integrations.diffusers' has no attribute {name!r}"
        )
    try:
        module = import_module(f"fastsample.integrations.diffusers.{_PLACES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "diffusers":
            raise
        raise ImportError(
            f"fastsample.integrations.diffusers: diffusers must be installed for {name}, got none; "
            "pip install 'fastsample[diffusers]'"
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return list(_PLACES)
