"""Samples and the conditions that belong to them: the first, the others, repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def repeat(x: Tensor, times: int) -> Tensor:
    """The samples again and again, all of them each time."""
    return x if times == 1 else x.repeat(times, *[1] * (x.dim() - 1))


def first(cond: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The entries of the first samples."""
    return {k: v[:count] if isinstance(v, Tensor) and v.dim() else v for k, v in cond.items()}


def others(cond: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The entries of all but the first samples."""
    return {k: v[count:] if isinstance(v, Tensor) and v.dim() else v for k, v in cond.items()}


def repeated(cond: Mapping[str, Any], times: int) -> dict[str, Any]:
    """The entries of samples that are there so many times."""
    return {k: repeat(v, times) if isinstance(v, Tensor) else v for k, v in cond.items()}
