"""Bridges to other projects: their pipelines, models, checkpoints and samplers.

One module per project, each imported when it is first used: ``fs.integrations.diffusers``,
``.openai``, ``.lucidrains``, ``.k_diffusion`` (which serves ComfyUI too), ``.edm`` and ``.azula``.
The projects themselves are optional.
"""

from importlib import import_module
from types import ModuleType

_MODULES = ("azula", "diffusers", "edm", "k_diffusion", "lucidrains", "openai")


def __getattr__(name: str) -> ModuleType:
    """Import one of the modules when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fastsample.integrations' has no attribute {name!r}")
    return import_module(f"fastsample.integrations.{name}")


def __dir__() -> list[str]:
    return list(_MODULES)
