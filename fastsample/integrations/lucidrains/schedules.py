"""Finds the noise schedule of a `GaussianDiffusion` from its betas."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.integrations.linear_betas import FEWEST_STEPS, linear_betas
from fastsample.schedules.schedule import NoiseSchedule


def schedule_of(name: str, betas: Any) -> NoiseSchedule:
    """Return the schedule of which these are the betas, if it can be in float64.

    The project computes its betas in float64, and keeps them and everything else in float32. Their
    rounding alone changes alpha_bar by up to 6e-7, and an alpha_bar kept in float32 changes sigma
    near the data by 1e-4. So the named schedules are computed anew, and taken if they round to the
    betas that are there; other betas are taken as they are.

    Args:
        name: the caller's name, for messages.
        betas: `(T,)`, of any floating dtype.

    Raises:
        TypeError: betas that are no floating tensor.
        ValueError: betas of a half precision that belong to no named schedule.
    """
    if not isinstance(betas, Tensor) or not betas.is_floating_point() or betas.dim() != 1:
        raise TypeError(
            f"{name}: diffusion.betas must be a floating tensor (T,), got {type(betas).__name__}"
        )
    kept = betas.detach().to("cpu", torch.float64).numpy()
    # Betas that are float64 now were made float64 by a cast of the model.
    rounding = 2.0 * max(torch.finfo(dtype).eps for dtype in (betas.dtype, torch.float32))
    steps = len(kept)
    candidates = [NoiseSchedule.cosine(steps), NoiseSchedule.from_betas(_sigmoid_betas(steps))]
    if steps >= FEWEST_STEPS:
        candidates.append(linear_betas(steps))
    for schedule in candidates:
        alpha_bar = schedule.alpha_bar(np.arange(steps + 1.0))
        if np.allclose(kept, 1.0 - alpha_bar[1:] / alpha_bar[:-1], rtol=rounding, atol=1e-12):
            return schedule
    if betas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: diffusion.betas must be float32 for a schedule of your own, got "
            f"{betas.dtype}; make the Denoiser before you cast the model"
        )
    return NoiseSchedule.from_betas(kept)


def _sigmoid_betas(steps: int) -> FloatArray:
    """Return the betas of the sigmoid schedule from -3 to 3 with tau = 1, the project's default.

    Jabri et al. 2022, "Scalable Adaptive Computation" (arXiv:2212.11972), figure 8. The project
    computes the two end points in float32. Near T their rounding is as large as alpha_bar itself,
    so it has to be theirs.
    """
    start, end = -3.0, 3.0
    ends = (torch.tensor(u, dtype=torch.float32, device="cpu") for u in (start, end))
    low, high = (end_point.sigmoid().item() for end_point in ends)
    u = np.arange(steps + 1) / steps * (end - start) + start
    alpha_bar = (high - 1.0 / (1.0 + np.exp(-u))) / (high - low)
    alpha_bar /= alpha_bar[0]
    return np.minimum(np.maximum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0), 0.999)
