"""Noise levels as k-diffusion and EDM write them: time is sigma, and alpha is 1."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from torch import Tensor

from fastsample._support.checks import FloatArray, check_vector
from fastsample.grids.grid import Grid
from fastsample.grids.sigmas import Convention, karras_sigmas
from fastsample.schedules.functions import MOST_SIGMA
from fastsample.schedules.schedule import NoiseSchedule

_DEEPEST = 6  # Wrappers hold other wrappers as `inner_model`; so many are looked at.


def itself(times: FloatArray) -> FloatArray:
    """Return a copy of the times: they are the noise levels, and what the network is told."""
    return np.array(times)  # torch warns of arrays that cannot be written to, as a plan's


def schedule_up_to(sigma_max: float, convention: Convention) -> NoiseSchedule:
    """Return the schedule of which sigma is the time: of flow, or exploding up to a level."""
    return NoiseSchedule.flow() if convention == "flow" else NoiseSchedule.exploding(sigma_max)


def karras(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Grid:
    """Make the grid of K noise levels of Karras et al. 2022 (arXiv:2206.00364), eq. (5), and 0.

    It holds the numbers of k-diffusion's `get_sigmas_karras` in float64, as times of the schedules
    that `denoiser` makes. `fastsample.grids.karras` ends at 0.02 for these schedules.

    Args:
        steps: K, at least 1.
        sigma_min: the last level before 0, positive.
        sigma_max: the first level, above `sigma_min`.
        rho: exponent, positive; larger puts more levels near the data.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.
    """
    return karras_grid("k_diffusion.karras", steps, sigma_min, sigma_max, rho)


def karras_grid(function: str, steps: Any, sigma_min: Any, sigma_max: Any, rho: Any) -> Grid:
    """Return `karras` of numbers that may be tensors of one element, for another caller's name."""
    levels = karras_sigmas(
        function,
        as_number(steps),
        sigma_min=as_number(sigma_min),
        sigma_max=as_number(sigma_max),
        rho=as_number(rho),
    )
    return Grid(np.append(levels, 0.0))


def checked_sigmas(function: str, sigmas: Any) -> FloatArray:
    """Return a list of noise levels as falling float64 numbers, without its repeats.

    Raises:
        TypeError: other things than real numbers.
        ValueError: no level, or one that rises, is negative or not finite.
    """
    values: Any = sigmas.detach().cpu().double().numpy() if isinstance(sigmas, Tensor) else sigmas
    levels = check_vector(function, "sigmas", values)
    if np.any(levels < 0.0):
        raise ValueError(f"{function}: sigmas must not be negative, got {levels.min():g}")
    rises = np.diff(levels) > 0.0
    if np.any(rises):
        i = int(np.argmax(rises))
        raise ValueError(
            f"{function}: sigmas must fall from noise to data, got {levels[i]:g} then "
            f"{levels[i + 1]:g} at position {i}; fastsample.invert carries data to noise"
        )
    falling = levels[np.append(True, np.diff(levels) < 0.0)]
    if falling[0] > MOST_SIGMA:
        raise ValueError(f"{function}: sigmas must be at most {MOST_SIGMA:g}, got {falling[0]:g}")
    return falling


def as_number(value: Any) -> Any:
    """Return the number that a tensor or an array of one element holds, and others as they are."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def stated(model: Any, name: str) -> float | None:
    """Return a level that a model or a model inside it states, such as its `sigma_max`, or None."""
    for part in parts_of(model):
        value = as_number(getattr(part, name, None))
        if isinstance(value, int | float):
            return float(value)
    return None


def parts_of(model: Any) -> list[Any]:
    """Return a model and the models inside it, from wrapper to wrapper by `inner_model`."""
    parts: list[Any] = []
    while model is not None and len(parts) < _DEEPEST:
        parts.append(model)
        model = cast(Any, getattr(model, "inner_model", None))
    return parts
