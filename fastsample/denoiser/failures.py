"""Tells where in a run a network failed: its own error, with the row and the time added."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


def explain(
    error: Exception,
    where: str,
    timestep: Tensor,
    call_at: Callable[[Tensor], Any],
    model: Any,
    given: Collection[str] = (),
) -> None:
    """Add to a network's error where in the run it was raised.

    Args:
        error: what the network raised.
        where: the place in the run: "in row 3 of 10 (t = 41.5)".
        timestep: `(B,)` the timesteps that the network was given.
        call_at: calls the network again at other timesteps.
        model: the network.
        given: names of the keyword arguments that the network was given.

    Raises:
        TypeError: the network takes no time, or needs an argument that it was not given.
        ValueError: the network has a table of times and was given fractional ones. Whether this is
            the cause is found out by a second call, with whole times.
    """
    if isinstance(error, TypeError) and not _takes_two(model):
        raise TypeError(
            "Denoiser: model must take x and the network's timestep, got "
            f"{type(model).__name__}, which does not ({error}); wrap a network without time: "
            "lambda x, t: network(x)"
        ) from error
    missing = _missing(error, model, given)
    if missing:
        raise TypeError(
            f"Denoiser: cond must hold the network's argument {missing!r}, got {sorted(given)}; "
            f"pass cond={{{missing!r}: ...}}, with one entry per sample"
        ) from error
    first = [float(value) for value in timestep.flatten()[:1]]
    if timestep.is_floating_point() and _may_be_about_indices(error):
        whole = torch.clamp(torch.round(timestep), min=0).to(torch.int64)
        if _succeeds(lambda: call_at(whole)):
            raise ValueError(
                "Denoiser: times must be whole for this network, which looks its timestep up in a "
                f"table, got fractional times in this run (a float timestep {first[0]:g} {where}); "
                "pass whole=True, which rounds them and drops repeats, or a grid of whole times, "
                'such as grid="uniform"'
            ) from error
    detail = f", at the network's timestep {first[0]:g}" if first else ""
    add_note(error, f"The network failed {where}{detail}.")


def _missing(error: Exception, model: Any, given: Collection[str]) -> str | None:
    """Return the name of an argument for the lack of which a network failed; None if none is known.

    Class-conditional networks of improved- and guided-diffusion have a default for their labels
    ``y`` and assert that it is not used.
    """
    if isinstance(error, TypeError):
        for parameter in _parameters(model)[2:]:
            is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if is_named and parameter.default is parameter.empty and parameter.name not in given:
                return parameter.name
    if isinstance(error, AssertionError) and "y" not in given:
        named = re.search(r"\by\b|class", str(error)) is not None
        labelled = getattr(model, "num_classes", named or None) is not None
        if labelled and any(parameter.name == "y" for parameter in _parameters(model)):
            return "y"
    return None


def _parameters(model: Any) -> list[inspect.Parameter]:
    """Return the parameters of a callable; none where nothing tells."""
    function: Any = model.forward if isinstance(model, nn.Module) else model
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature
        return []


def add_note(error: Exception, note: str) -> None:
    """Add a note to an error, which a traceback shows below its message."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):  # Python 3.10 has no notes
        error.args = (f"{error.args[0]}\n{note}",)


def _may_be_about_indices(error: Exception) -> bool:
    """Return whether an error may come from a table that was given numbers with a fraction."""
    return any(word in str(error).lower() for word in ("indices", "index", "integer"))


def _succeeds(call: Callable[[], Any]) -> bool:
    """Return whether a call raises no error."""
    try:
        call()
    except Exception:
        return False
    return True


def _takes_two(model: Any) -> bool:
    """Return whether a callable takes two positional arguments; True where nothing tells."""
    function: Any = model.forward if isinstance(model, nn.Module) else model
    try:
        inspect.signature(function).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True
