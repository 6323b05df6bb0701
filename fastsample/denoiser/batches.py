"""Turns data from users into checked batches on the model's device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from fastsample._support.checks import check_integer, check_real
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.denoiser import Denoiser


def batches_of(
    function: str, denoiser: Denoiser, data: Tensor | Iterable[Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Check data and yield its non-empty batches `(B, *shape)` on the model's device.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        data: samples `(N, *shape)`, or an iterable of batches of them, which keep their sizes.
        batch_size: samples per batch, for a `data` tensor.

    Raises:
        TypeError: data other than floating tensors.
        ValueError: samples of another shape.
    """
    size = check_integer(function, "batch_size", batch_size, 1)
    for x0 in _tensors(function, data, size):
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


def _tensors(function: str, data: Any, size: int) -> Iterable[Any]:
    """Return an iterable of the unchecked batches; TypeError if the data cannot be iterated."""
    if not isinstance(data, Iterable) or (isinstance(data, Tensor) and data.dim() == 0):
        raise TypeError(
            f"{function}: data must be a tensor (N, *shape) or batches of them, got {data!r:.80}"
        )
    return torch.split(data, size) if isinstance(data, Tensor) else cast(Iterable[Any], data)


def check_data_range(function: str, x0: Tensor) -> None:
    """Raise ValueError for NaN or values outside [-1, 1], where the decoder has no bins."""
    low, high = float(x0.min()), float(x0.max())
    if not -1.0 - 1e-6 <= low <= high <= 1.0 + 1e-6:
        raise ValueError(
            f"{function}: data must be in [-1, 1], where the decoder's bins lie, "
            f"got {low:g} to {high:g}"
        )


def check_bin_width(function: str, bin_width: Any) -> float:
    """Return the distance of neighbouring data levels as a float; raise unless it is in (0, 2]."""
    width = check_real(function, "bin_width", bin_width)
    if not 0.0 < width <= 2.0:
        raise ValueError(f"{function}: bin_width must be in (0, 2], got {width:g}")
    return width
