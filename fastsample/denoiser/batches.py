"""Data of any kind as checked batches on the model's device, with what belongs to each sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastsample._support.checks import check_integer, check_real
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser


def batches_of(
    function: str, denoiser: Denoiser, data: Tensor | Iterable[Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Batches `(B, *shape)` that are not empty, on the model's device."""
    size = check_integer(function, "batch_size", batch_size, 1)
    if not isinstance(data, Iterable) or (isinstance(data, Tensor) and data.dim() == 0):
        raise TypeError(
            f"{function}: data must be a tensor (N, *shape) or batches of them, got {data!r:.80}"
        )
    for x0 in data.split(size) if isinstance(data, Tensor) else data:
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
            remedy = "; of a loader's pairs pass (x for x, _ in loader)" if got == "list" else ""
            raise TypeError(f"{function}: data must be floating tensors, got {got}{remedy}")
        if x0.dim() == 0:
            raise ValueError(f"{function}: data must hold batches (B, *shape), got a number")
        x0 = x0.to(denoiser.device)
        check_tensor("data", x0, (x0.shape[0], *denoiser.shape), x0.dtype, x0.device, function)
        if x0.shape[0] > 0:
            yield x0


def check_range(function: str, x0: Tensor) -> None:
    """Refuse data outside the bins of the discretized decoder, [-1, 1]; NaN is outside too."""
    low, high = float(x0.min()), float(x0.max())
    if not -1.0 - 1e-6 <= low <= high <= 1.0 + 1e-6:
        raise ValueError(
            f"{function}: data must be in [-1, 1], where the decoder's bins lie, "
            f"got {low:g} to {high:g}"
        )


def check_width(function: str, bin_width: Any) -> float:
    """Distance of neighbouring data levels: two of them at least fit in [-1, 1]."""
    width = check_real(function, "bin_width", bin_width)
    if not 0.0 < width <= 2.0:
        raise ValueError(f"{function}: bin_width must be in (0, 2], got {width:g}")
    return width


def check_cond(function: str, cond: Mapping[str, Any] | None, count: int) -> None:
    """Refuse per-sample arguments that are not as many as the samples."""
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(
            f"{function}: cond must be a mapping of keyword arguments, got {type(cond).__name__}"
        )
    for name, value in (cond or {}).items():
        if isinstance(value, Mapping):
            raise TypeError(f"{function}: cond[{name!r}] must hold numbers, got a mapping")
        if _per_sample(value) and len(value) != count:
            raise ValueError(
                f"{function}: cond[{name!r}] must have one entry per sample ({count}), "
                f"got {len(value)}"
            )


def arguments_of(
    function: str, cond: Mapping[str, Any] | None, first: int, x0: Tensor
) -> Mapping[str, Any]:
    """The network's keyword arguments for the samples from `first` on."""
    batch = x0.shape[0]
    part = {key: _slice(value, first, batch) for key, value in (cond or {}).items()}
    return Conditions(function, part, None, batch, x0.device).arguments


def chosen_conditions(
    cond: Mapping[str, Any] | None, index: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """The entries of the samples of these numbers."""

    def chosen(value: Any) -> Any:
        if not _per_sample(value):
            return value
        return [value[i] for i in index] if isinstance(value, (list, tuple)) else value[index]

    return {name: chosen(value) for name, value in (cond or {}).items()}


def _slice(value: Any, first: int, count: int) -> Any:
    """The entries of some samples; a number is for all of them."""
    return value[first : first + count] if _per_sample(value) else value


def _per_sample(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, list, tuple)) and np.ndim(value) > 0
