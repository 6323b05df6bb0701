"""Turns data from users into checked batches on the model's device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray, check_integer, check_real, warn_user
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


def check_data_range(function: str, x0: Tensor, remedy: str = "") -> None:
    """Raise ValueError for NaN or values outside [-1, 1], where the decoder has no bins.

    Args:
        function: the caller's name, for the message.
        x0: the data.
        remedy: what the message ends with.
    """
    if not in_data_range(x0):
        raise ValueError(
            f"{function}: data must be in [-1, 1], where the decoder's bins lie, "
            f"got {float(x0.min()):g} to {float(x0.max()):g}{remedy}"
        )


def in_data_range(x0: Tensor) -> bool:
    """Return whether all values are in [-1, 1] up to rounding; False for NaN."""
    return -1.0 - 1e-6 <= float(x0.min()) <= float(x0.max()) <= 1.0 + 1e-6


def share_off_bins(x0: Tensor, bin_width: float) -> float:
    """Return the share of values that are not on bins, at multiples of `bin_width` from -1.

    It is 0 for data of a dtype that cannot tell neighbouring bins apart, such as bfloat16 for the
    bins of 8-bit data.

    Args:
        x0: data in [-1, 1].
        bin_width: the distance of neighbouring bins.
    """
    # Levels that were computed in another way differ by up to three roundings of numbers below 2.
    tolerance = max(1e-3, 1.5 * torch.finfo(x0.dtype).eps / bin_width)
    if tolerance > 0.2 or not x0.numel():
        return 0.0
    position: FloatArray = (x0.detach().flatten().double().cpu().numpy() + 1.0) / bin_width
    return float(np.mean(np.abs(position - np.rint(position)) > tolerance))


def warn_off_bins(
    function: str, x0: Tensor, bin_width: float, *, only_mistakes: bool = False
) -> None:
    """Warn of data that are not on the decoder's bins; see `share_off_bins`.

    Args:
        function: the caller's name, for the message.
        x0: data in [-1, 1].
        bin_width: the distance of neighbouring bins.
        only_mistakes: warn only of data that look quantised otherwise, not of any real numbers.
    """
    share = share_off_bins(x0, bin_width)
    if share == 0.0:
        return
    values: FloatArray = x0.detach().flatten().double().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    levels = np.unique(values[:65536])
    step = float(np.diff(levels).min()) if 1 < len(levels) <= 512 else 0.0
    likely = None
    if 0.0 <= low < high and len(levels) <= 256:
        likely = f"they are in [{low:g}, {high:g}]: scale data in [0, 1] by 2 x - 1"
    elif step > 1e-3 and np.all(
        np.abs(levels + 1.0 - step * np.rint((levels + 1.0) / step)) < 1e-5
    ):
        likely = f"their levels are {step:.4g} apart: pass bin_width={step:.4g}"
    if likely is None and only_mistakes:
        return
    warn_user(
        f"{function}: data must be on the decoder's bins, {bin_width:.4g} apart from -1 on, for "
        f"bits per dimension to be right, got {100.0 * share:.3g}% of the values between them; "
        f"{likely or 'round them to the bins'}"
    )


def check_finite(function: str, x0: Tensor) -> None:
    """Raise ValueError for data that hold NaN or infinity."""
    if not torch.isfinite(x0).all():
        raise ValueError(f"{function}: data must be finite, got NaN or infinity")


def check_bin_width(function: str, bin_width: Any) -> float:
    """Return the distance of neighbouring data levels as a float; raise unless it is in (0, 2]."""
    width = check_real(function, "bin_width", bin_width)
    if not 0.0 < width <= 2.0:
        raise ValueError(f"{function}: bin_width must be in (0, 2], got {width:g}")
    return width
