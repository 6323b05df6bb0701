"""Makes grids from lists of sigmas, which other programs exchange instead of times."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_vector
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
            `NoiseSchedule.flow` and "ratio" for every other schedule.

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
    if schedule.kind == "flow" and kind == "flow":
        return Grid(np.append(values, 0.0))  # times themselves, which logarithms would round
    with np.errstate(divide="ignore"):
        signal = 1.0 - values if kind == "flow" else 1.0
        log_snr = 2.0 * (np.log(signal) - np.log(values))
    lowest = float(schedule.log_snr(schedule.T))
    times = schedule.time_at_log_snr(np.maximum(log_snr, lowest))
    times[values == most] = schedule.T
    return Grid(np.append(times, 0.0))


def sigmas_of(alpha: FloatArray, sigma: FloatArray, convention: Convention) -> FloatArray:
    """Return what a program calls sigma at these levels; +inf for "ratio" where alpha is 0."""
    with np.errstate(divide="ignore"):
        return sigma / (alpha + sigma) if convention == "flow" else sigma / alpha


def checked_convention(
    function: str, convention: object, schedule: NoiseSchedule | None
) -> Convention:
    """Return the convention, where None is the schedule's own; ValueError for an unknown one."""
    if convention is None:
        return "flow" if schedule is not None and schedule.kind == "flow" else "ratio"
    for known in get_args(Convention):
        if convention == known:
            return known
    raise ValueError(
        f"{function}: convention must be one of {list(get_args(Convention))}, got {convention!r}"
    )
