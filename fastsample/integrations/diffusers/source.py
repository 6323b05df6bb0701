"""Finds the diffusers scheduler that a config belongs to, and makes it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

_FIRST = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler")
"""Classes that are looked at first, since others take the same arguments."""


def source_class(function: str, name: str) -> type[Any]:
    """Return the scheduler class of diffusers with this name; ValueError for an unknown one."""
    found = getattr(diffusers, name, None)
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        raise ValueError(
            f"{function}: source must be the name of a scheduler class of diffusers, got {name!r}"
        )
    return found


def name_of(function: str, config: Mapping[str, Any]) -> str:
    """Return the class name of the scheduler that a config belongs to.

    The config of a scheduler in memory does not name its class; it has all the arguments of the
    class, which tell it.

    Raises:
        TypeError: the config is no mapping.
        ValueError: no scheduler takes these arguments.
    """
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{function}: config must be the config of a scheduler, got {type(config).__name__}; "
            "of a scheduler pass scheduler.config, or call from_scheduler(scheduler)"
        )
    name = config.get("_class_name")
    if isinstance(name, str) and name in _arguments():
        return name
    keys = {key for key in config if not key.startswith("_")}
    for name, arguments in _arguments().items():
        if arguments == keys:
            return name
    raise ValueError(
        f"{function}: config must be that of a scheduler of diffusers, got the keys "
        f"{sorted(keys)}; pass the scheduler itself to from_scheduler"
    )


@cache
def _arguments() -> dict[str, set[str]]:
    """Return the names of the arguments of all scheduler classes of diffusers, by class name."""
    names = [n for n in dir(diffusers) if n.endswith("Scheduler") and n not in _FIRST]
    classes = {n: getattr(diffusers, n) for n in (*_FIRST, *names)}
    return {
        name: set(defaults_of(found))
        for name, found in classes.items()
        if inspect.isclass(found) and issubclass(found, SchedulerMixin)
    }


def defaults_of(source: type[Any]) -> dict[str, Any]:
    """Return the arguments of a scheduler class and their defaults."""
    parameters = list(inspect.signature(source.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


def make_source(name: str, config: Mapping[str, Any]) -> Any:
    """Make a scheduler of diffusers from a config that holds its arguments."""
    found = source_class("FastSampleScheduler", name)
    arguments = {key: config[key] for key in defaults_of(found) if key in config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's deprecations of what diffusers does
        return found(**arguments)
