"""The lists of times and of noise levels that denoising-diffusion-pytorch samples with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastsample._support.checks import check_integer, check_real
from fastsample.grids.grid import Grid
from fastsample.grids.sigmas import karras_sigmas

_NAME = "lucidrains.grid"


def grid(diffusion: Any, num_steps: int | None = None) -> Grid:
    """Return the times at which the project samples, for ``fs.sample(model, grid)``.

    For `GaussianDiffusion` it is the list of its `ddim_sample`, ``linspace(-1, T - 1, K + 1)``
    truncated to integers, which is not `grids.uniform` for most K. With K = T it holds all steps,
    as its `p_sample_loop`. For `ElucidatedDiffusion` it is its `sample_schedule`, eq. (5) of Karras
    et al. 2022 (arXiv:2206.00364): there the time is the noise level sigma.

    Args:
        diffusion: the object, or the number of trained steps T of a `GaussianDiffusion`.
        num_steps: K; None is the object's own number.

    Raises:
        TypeError: another object, or a number of steps that is no integer.
        ValueError: a number of steps out of range.
    """
    if hasattr(diffusion, "sigma_max"):
        return _elucidated(diffusion, num_steps)
    default = getattr(diffusion, "sampling_timesteps", None)
    if isinstance(getattr(diffusion, "num_timesteps", None), int):
        diffusion = diffusion.num_timesteps
    if isinstance(diffusion, bool) or not isinstance(diffusion, int):
        raise TypeError(
            f"{_NAME}: diffusion must be a GaussianDiffusion, an ElucidatedDiffusion or a number "
            f"of steps T, got {type(diffusion).__name__}"
        )
    T = check_integer(_NAME, "diffusion", diffusion, 1)
    steps = check_integer(_NAME, "num_steps", default if num_steps is None else num_steps, 1, T)
    # Its float32 rounding decides about the truncation, so this has to be torch's own function.
    times = torch.linspace(-1, T - 1, steps=steps + 1, dtype=torch.float32, device="cpu").int()
    return Grid.from_indices(times[1:].numpy())


def _elucidated(diffusion: Any, num_steps: int | None) -> Grid:
    """Return the noise levels from sigma_max to sigma_min, evenly spaced in sigma^(1 / rho)."""
    if num_steps is None:
        num_steps = diffusion.num_sample_steps
    steps = check_integer(_NAME, "num_steps", num_steps, 1)
    low, high, rho = (
        check_real(_NAME, f"diffusion.{name}", getattr(diffusion, name))
        for name in ("sigma_min", "sigma_max", "rho")
    )
    levels = karras_sigmas(_NAME, steps, sigma_min=low, sigma_max=high, rho=rho)
    return Grid(np.append(levels, 0.0))
