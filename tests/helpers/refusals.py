"""Tables of bad input: each entry is refused, in one grammar for every message."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastsample as fs
from tests.helpers.networks import LINEAR, denoiser, halve

# <function>: <argument> must <rule>, got <value>; some rules leave nothing to be got.
GRAMMAR = re.compile(r"^[\w.]+: .+ must (not )?.+(, got .+|without one)", re.DOTALL)

MODEL = denoiser(halve, 2, 3)
START = torch.ones(2, 2, 3)

Call = Callable[[], Any]
Table = dict[str, tuple[Call, type[Exception], str]]


def sample(model: Any = MODEL, steps: Any = 3, **options: Any) -> Call:
    """`sample` with a good model and one bad argument."""
    return lambda: fs.sample(model, steps, **options)


def bare(network: Any = halve, steps: Any = 3, **options: Any) -> Call:
    """The same with a bare callable."""
    return sample(network, steps, **{"shape": (2, 3), **options})


def wrap(network: Any = halve, schedule: Any = LINEAR, shape: Any = (2, 3), **options: Any) -> Call:
    """A `Denoiser` with one bad argument."""
    return lambda: fs.Denoiser(network, schedule, shape, **options)


def refusals(**tables: Table) -> pytest.MarkDecorator:
    """Parametrise over tables of (call, type of the error, its message)."""
    cases = {f"{t}: {name}": case for t, table in tables.items() for name, case in table.items()}
    return pytest.mark.parametrize(("call", "error", "match"), cases.values(), ids=cases)


def check_refusal(call: Call, error: type[Exception], match: str) -> None:
    """The call fails with that very type, a fitting message, and the grammar of messages."""
    with pytest.raises(error, match=match) as caught:
        call()
    assert type(caught.value) is error
    assert GRAMMAR.match(str(caught.value)), str(caught.value)
