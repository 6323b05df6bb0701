"""Finds the diffusers scheduler that a config belongs to, and makes it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

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


def source_of(scheduler: Any, *, exact: bool) -> str:
    """Return the name of a scheduler's class in diffusers, or of the first base that is there.

    Args:
        scheduler: a scheduler.
        exact: whether its class itself must be one of diffusers, since its steps are repeated.

    Raises:
        ValueError: a subclass, whose changes would be lost.
    """
    for kind in type(scheduler).__mro__:
        if getattr(diffusers, kind.__name__, None) is kind:
            if exact and kind is not type(scheduler):
                raise ValueError(
                    f'from_scheduler: method must not be "auto" with {type(scheduler).__name__}, '
                    f"whose changes of {kind.__name__} are not known here; pass "
                    'method="fastsample" or another method'
                )
            return kind.__name__
    raise ValueError(
        f"from_scheduler: scheduler must be of a class of diffusers or of a subclass, got "
        f"{type(scheduler).__name__}"
    )


def check_unchanged(scheduler: Any, made: Any) -> None:
    """Raise ValueError for a scheduler that is not what its config says any more.

    Args:
        scheduler: the scheduler.
        made: another one of its config.
    """
    for name in ("alphas_cumprod", "shift"):
        here, there = getattr(scheduler, name, None), getattr(made, name, None)
        if isinstance(here, Tensor) and isinstance(there, Tensor):
            same = here.shape == there.shape and bool((here.cpu() == there).all())
        else:
            same = here == there
        if not same:
            raise ValueError(
                f"from_scheduler: scheduler must be as its config says, got another {name}; make "
                "it with arguments that say so (trained_betas=, shift=), and replace that one"
            )


def name_of(function: str, config: Mapping[str, Any], *, exact: bool = True) -> str:
    """Return the class name of the scheduler that a config belongs to.

    The config of a scheduler in memory does not name its class; it has all the arguments of the
    class, which tell it.

    Args:
        function: the caller's name, for messages.
        config: the config.
        exact: whether classes with equal arguments must be told apart.

    Raises:
        TypeError: the config is no mapping.
        ValueError: no scheduler takes these arguments, or several that differ.
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
    fitting = [name for name, arguments in _arguments().items() if arguments == keys]
    others = [name for name in fitting if name.replace("Parallel", "") != fitting[0]]
    if exact and others:
        raise ValueError(
            f"{function}: config must tell its class, got one that fits {fitting[0]} and "
            f"{others[0]}; pass the scheduler itself to from_scheduler"
        )
    if fitting:
        return fitting[0]
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
