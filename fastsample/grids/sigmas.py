"""Makes grids from lists of sigmas, which other programs exchange instead of times."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_integer, check_real, check_vector
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule

Convention: TypeAlias = Literal["ratio", "flow"]
"""What a program calls sigma: "ratio" is sigma / alpha, the noise level of data that is not scaled
down (k-diffusion, ComfyUI, diffusers' Euler); "flow" is sigma / (alpha + sigma), from 0 to 1, which
is the time of flow matching."""

_ROUNDING = 1e-3  # lists are published with three to five digits


def from_sigmas(
    schedule: NoiseSchedule, sigmas: npt.ArrayLike, *, convention: Convention | None = None
) -> Grid:
    """Make the grid of the times at which a schedule has the sigmas of a list.

    Args:
        schedule: noise levels. Times between the steps of a discrete schedule are kept as they are.
        sigmas: `(K + 1,)`, falling, the last one 0 (data). The first may exceed that of the
            schedule's T by 0.1%, as rounded lists do: 14.615 for Stable Diffusion, where sigma is
            14.6146 at T. It then means T.
        convention: "ratio" is sigma / alpha, for k-diffusion, ComfyUI and diffusers' Euler; "flow"
            is sigma / (alpha + sigma), the time of flow matching. None is "flow" for
            `NoiseSchedule.flow` and functions with alpha + sigma = 1, and "ratio" for every other
            schedule.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: sigmas that do not fall to 0, or are above the schedule's highest.
    """
    name = "grids.from_sigmas"
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: schedule must be a NoiseSchedule, got {schedule!r}")
    kind = checked_convention(name, convention, schedule)
    values = check_vector(name, "sigmas", sigmas)
    steps = np.diff(values)
    if np.any(steps >= 0.0):
        i = int(np.argmax(steps >= 0.0))
        raise ValueError(
            f"{name}: sigmas must fall (noisiest first), got {values[i]:g} then {values[i + 1]:g} "
            f"at position {i}"
        )
    if len(values) < 2 or values[-1] != 0.0:
        raise ValueError(
            f"{name}: sigmas must end at 0 (data) after at least one other, got {values[-1]:g} "
            "last; append 0.0, and pass last= to a sampler to end part way"
        )
    most = float(sigmas_of(*schedule.levels(schedule.T), kind))
    if values[0] > most * (1.0 + _ROUNDING):
        raise ValueError(
            f"{name}: sigmas must be at most {most:.6g}, that of the schedule at T, got "
            f"{values[0]:g}"
        )
    values = np.minimum(values[:-1], most)
    if (schedule.kind, kind) in (("flow", "flow"), ("exploding", "ratio")):
        return Grid(np.append(values, 0.0))  # times themselves, which logarithms would round
    with np.errstate(divide="ignore"):
        signal = 1.0 - values if kind == "flow" else 1.0
        log_snr = 2.0 * (np.log(signal) - np.log(values))
    lowest = float(schedule.log_snr(schedule.T))
    times = schedule.time_at_log_snr(np.maximum(log_snr, lowest))
    times[values == most] = schedule.T
    return Grid(np.append(times, 0.0))


def karras_sigmas(
    function: str, num_steps: int, *, sigma_min: float, sigma_max: float, rho: float
) -> FloatArray:
    """Return the K noise levels of Karras et al. 2022 (arXiv:2206.00364), eq. (5), without the 0.

    Their ``sigma^(1 / rho)`` is evenly spaced from `sigma_max`, which is the first level exactly,
    to `sigma_min`.

    Args:
        function: the caller's name, for messages.
        num_steps: K, at least 1; a single level is `sigma_max`.
        sigma_min: the last level, positive.
        sigma_max: the first level, above `sigma_min`.
        rho: exponent, positive; larger puts more levels near the data.
    """
    low = check_real(function, "sigma_min", sigma_min)
    high = check_real(function, "sigma_max", sigma_max)
    power = check_real(function, "rho", rho)
    if power <= 0.0:
        raise ValueError(f"{function}: rho must be positive, got {power:g}")
    if low <= 0.0:
        raise ValueError(f"{function}: sigma_min must be positive, got {low:g}")
    if high <= low:
        raise ValueError(f"{function}: sigma_max must be above sigma_min = {low:g}, got {high:g}")
    steps = check_integer(function, "steps", num_steps, 1)
    first, last = math.pow(high, 1.0 / power), math.pow(low, 1.0 / power)
    roots: FloatArray = np.linspace(first, last, steps)
    levels: FloatArray = np.power(roots, power)
    levels[0] = high  # a power of a root may round to above the schedule's T
    return levels


def sigmas_of(alpha: FloatArray, sigma: FloatArray, convention: Convention) -> FloatArray:
    """Return what a program calls sigma at these levels; +inf for "ratio" where alpha is 0."""
    with np.errstate(divide="ignore"):
        return sigma / (alpha + sigma) if convention == "flow" else sigma / alpha


def checked_convention(
    function: str, convention: object, schedule: NoiseSchedule | None
) -> Convention:
    """Return the convention, where None is the schedule's own; ValueError for an unknown one."""
    if convention is None:
        return "flow" if schedule is not None and _is_flow(schedule) else "ratio"
    for known in get_args(Convention):
        if convention == known:
            return known
    raise ValueError(
        f"{function}: convention must be one of {list(get_args(Convention))}, got {convention!r}"
    )


def _is_flow(schedule: NoiseSchedule) -> bool:
    """Return whether alpha + sigma is 1 at all times, as for flow matching."""
    if schedule.kind != "from_functions":
        return schedule.kind == "flow"
    alpha, sigma = schedule.levels(np.linspace(0.0, schedule.T, 65))
    return np.allclose(alpha + sigma, 1.0, rtol=0.0, atol=1e-9)
