"""Conditions of a batch: per-sample arguments of the network, and the doubled batch of guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Conditions:
    """The network's extra keyword arguments for every call of a run.

    Without guidance they are passed as they are. With guidance (Ho & Salimans 2022,
    arXiv:2207.12598) one call runs the batch twice, unconditional half first, and `split` gives
    the halves of its output as views.

    Args:
        function: who asks, for messages.
        cond: keyword arguments; a tensor or list gives one entry per sample, a number all of them.
        uncond: the same with "no condition"; None without guidance.
        batch: number of samples.
        device: where tensors go.

    Attributes:
        guided: whether a call runs the batch twice.
        arguments: what the network is passed.
        conditional: the same without guidance, for rows that need none.
    """

    def __init__(
        self,
        function: str,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        batch: int,
        device: torch.device,
    ) -> None:
        self.guided = uncond is not None
        given = _placed(function, "cond", {} if cond is None else cond, batch, device)
        self.conditional = self
        if uncond is None:
            self.arguments = given
            return
        self.conditional = Conditions(function, given, None, batch, device)
        absent = _placed(function, "uncond", uncond, batch, device)
        if given.keys() != absent.keys():
            raise ValueError(
                f"{function}: cond must have the names of uncond {sorted(absent)}, "
                f"got {sorted(given)}"
            )
        self.arguments = {
            name: _doubled(function, name, absent[name], given[name]) for name in given
        }

    def doubled(self, x: Tensor) -> Tensor:
        """What the network is fed: x, or x twice."""
        return torch.cat((x, x)) if self.guided else x

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional output, unconditional output or None)."""
        if not self.guided:
            return output, None
        unconditional, conditional = output.chunk(2)
        return conditional, unconditional


def batch_of(cond: Mapping[str, Any] | None) -> int | None:
    """How many samples the conditions are for; None when they do not say."""
    if not isinstance(cond, Mapping):  # `Conditions` says what is wrong with anything else
        return None
    for value in cond.values():
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0:
            return value.shape[0]
        if isinstance(value, (list, tuple)):
            return len(value)
    return None


def _placed(
    function: str, label: str, values: Mapping[str, Any], batch: int, device: torch.device
) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{function}: {label} must be a mapping of keyword arguments, "
            f"got {type(values).__name__}"
        )
    placed: dict[str, Any] = {}
    for name, value in values.items():
        numeric = (int, float, list, tuple, np.ndarray, np.number)
        if isinstance(value, numeric) and not isinstance(value, bool):
            try:
                value = torch.tensor(value)  # a copy: the caller may write to theirs
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"{function}: {label}[{name!r}] must hold numbers, got {value!r:.80} ({error})"
                ) from None
        if isinstance(value, Tensor):
            value = value.to(device)
            if value.dim() == 0:
                value = value.expand(batch)
            if value.shape[0] != batch:
                raise ValueError(
                    f"{function}: {label}[{name!r}] must have one entry per sample ({batch}), "
                    f"got {value.shape[0]}"
                )
        placed[name] = value
    return placed


def _doubled(function: str, name: str, absent: Any, given: Any) -> Any:
    if isinstance(absent, Tensor) and isinstance(given, Tensor):
        if absent.shape[1:] != given.shape[1:]:
            raise ValueError(
                f"{function}: cond[{name!r}] must have the entries of uncond "
                f"{tuple(absent.shape[1:])}, got {tuple(given.shape[1:])}"
            )
        return torch.cat((absent, given))
    if isinstance(absent, Tensor) or isinstance(given, Tensor) or absent != given:
        raise ValueError(
            f"{function}: cond[{name!r}] must be a tensor, or equal in cond and uncond, under "
            "guidance: both halves of the batch share one call"
        )
    return given


# ---- samples and the conditions that belong to them


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
