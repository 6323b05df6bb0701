"""The function `diffuse`, which adds the noise of any time t to data (the forward process)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray, check_array
from fastsample._support.tensors import check_tensor
from fastsample.ops.draws import DIFFUSE_DRAW
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.sampling.noise import as_seed, make_identity
from fastsample.schedules.schedule import NoiseSchedule


def diffuse(
    x0: Tensor,
    schedule: NoiseSchedule,
    t: float | Sequence[float] | FloatArray | Tensor,
    *,
    seed: int | Sequence[int] | torch.Generator | None = None,
    sample_index: int | Sequence[int] | Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Add the noise of time t to data: ``x_t = alpha(t) x0 + sigma(t) eps``.

    Eq. (4) of Ho et al. 2020 (arXiv:2006.11239); at fractional t the fast forward process of
    FastDPM (Kong and Ping 2021, arXiv:2106.00132). eps is a function of (seed, sample index,
    element) alone, and independent of all noise that `sample` draws, also under an equal seed.
    Differentiable in `x0`.

    Args:
        x0: data ``(B, *shape)``, floating.
        schedule: the noise levels alpha and sigma.
        t: real times in [0, T], a number or one per sample ``(B,)``.
        seed: as for `sample`.
        sample_index: as for `sample`.
        noise: eps in the shape and dtype of `x0`, instead of generated noise.

    Returns:
        x_t ``(B, *shape)`` in the dtype of `x0`; the arithmetic is in float32, or float64 for
        float64 data.

    Raises:
        TypeError: data that are no floating tensor, or a schedule that is no `NoiseSchedule`.
        ValueError: a time outside [0, T], or shapes that do not fit.
    """
    _check_floating(x0)
    if x0.dim() < 2:
        raise ValueError(f"diffuse: x0 must have shape (B, *shape), got {tuple(x0.shape)}")
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"diffuse: schedule must be a NoiseSchedule, got {schedule!r}")
    times = check_array("diffuse", "t", t)
    batch, dtype = x0.shape[0], history_dtype(x0)
    if times.shape not in ((), (batch,)):
        raise ValueError(
            f"diffuse: t must be one time or one per sample ({batch},), got shape {times.shape}"
        )
    if times.size and not 0.0 <= times.min() <= times.max() <= schedule.T:
        raise ValueError(
            f"diffuse: t must be in [0, {schedule.T:g}], got {times.min():g} to {times.max():g}"
        )
    if not isinstance(noise, Tensor | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"diffuse: noise must be a tensor, got {type(noise).__name__}")
    check_tensor("noise", noise, tuple(x0.shape), x0.dtype, x0.device, "diffuse")
    if noise is None:
        identity = make_identity(
            "diffuse", as_seed("diffuse", seed), sample_index, batch, x0.device
        )
        noise = ops.noise(*identity, x0.shape[1:], draw=DIFFUSE_DRAW, dtype=dtype)
    alpha, sigma = (
        torch.as_tensor(level, dtype=dtype, device=x0.device).reshape(-1, *[1] * (x0.dim() - 1))
        for level in schedule.levels(times)
    )
    return (alpha * x0.to(dtype) + sigma * noise.to(dtype)).to(x0.dtype)


def _check_floating(x0: Any) -> None:
    """Raise TypeError for data that are no tensor of a supported floating dtype."""
    if not isinstance(x0, Tensor) or x0.dtype not in DTYPE_CODES:
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"diffuse: x0 must be a floating tensor, got {got}")
