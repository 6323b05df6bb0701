"""Warns of networks that are left in training mode, in which dropout and batch norms are active."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from fastsample._support.checks import warn_user

# Networks by their id, with a weak reference that tells whether the id still belongs to them.
_SEARCHED: dict[int, weakref.ref[nn.Module]] = {}
_WARNED: dict[int, weakref.ref[nn.Module]] = {}
_MEANT: ContextVar[bool] = ContextVar("training mode is meant", default=False)


@contextmanager
def training_meant() -> Generator[None]:
    """Let networks in training mode run without a warning inside the ``with`` block."""
    token = _MEANT.set(True)
    try:
        yield
    finally:
        _MEANT.reset(token)


def warn_of_training_mode(function: str, model: Any) -> None:
    """Warn if a network is in training mode, once per network.

    A call looks at the flag of the whole network; its parts are looked at in the first call only,
    because there may be thousands of them.

    Args:
        function: the caller's name, for the message.
        model: a module, or a callable that is bound to one, holds one as an attribute or refers to
            one by name.
    """
    if torch.compiler.is_compiling():
        cast(Any, torch.compiler.disable(_warn))(function, model)  # pyright: ignore[reportUnknownMemberType]
    else:
        _warn(function, model)


def _warn(function: str, model: Any) -> None:
    for network in (model,) if isinstance(model, nn.Module) else _networks_of(model):
        if network.training:
            _warn_once(function, network, "")
        elif not _is_in(_SEARCHED, network):
            _SEARCHED[id(network)] = weakref.ref(network)
            modules = cast(Any, network).named_modules()
            parts: list[str] = [name for name, part in modules if part.training]
            if parts:
                _warn_once(function, network, f" in its part {parts[0]!r}")


def _warn_once(function: str, network: nn.Module, part: str) -> None:
    """Warn of a network in training mode, unless it was warned of before or this is meant."""
    if _MEANT.get() or _is_in(_WARNED, network):
        return
    _WARNED[id(network)] = weakref.ref(network)
    warn_user(
        f"{function}: model must be in evaluation mode, got {type(network).__name__} in training "
        f"mode{part}: dropout draws random numbers, so that results differ from call to call, and "
        "batch norms change their statistics; call model.eval() before"
    )


def _is_in(known: dict[int, weakref.ref[nn.Module]], network: nn.Module) -> bool:
    """Return whether the network itself is known, not one that had its id before."""
    reference = known.get(id(network))
    return reference is not None and reference() is network


def _networks_of(model: Any) -> list[nn.Module]:
    """Return the modules that a callable is bound to, holds as attributes or names in its code."""
    if isinstance(model, FunctionType):
        values = _variables_of(model)
    elif isinstance(model, partial):
        function: Any = cast("partial[Any]", model).func
        return [function] if isinstance(function, nn.Module) else _networks_of(function)
    else:
        owner = getattr(model, "__self__", model)
        values = [owner, *getattr(owner, "__dict__", {}).values()]
        if isinstance(owner, nn.Module):
            return [owner]
    return [value for value in values if isinstance(value, nn.Module)]


def _variables_of(function: FunctionType) -> list[Any]:
    """Return the values of the global and enclosing variables that a function names."""
    names = function.__globals__
    values = [names[name] for name in function.__code__.co_names if name in names]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a variable that has no value yet
            values.append(cell.cell_contents)
    return values
