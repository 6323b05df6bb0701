"""The times of a given list of variances or noise levels, such as the published ones for audio."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsample._support.checks import FloatArray, check_integer, check_vector, warn_user
from fastsample.grids.grid import Grid
from fastsample.schedules.schedule import NoiseSchedule


def levels_grid(
    schedule: NoiseSchedule,
    num_steps: int | None,
    variances: Any,
    noise_levels: Any,
) -> Grid:
    """Return the times T(r) of a short chain that is given by its variances or its noise levels.

    Kong and Ping 2021 (arXiv:2106.00132), section 3.2: the chain of variances eta_s has the levels
    ``r_s^2 = prod_{j <= s} (1 - eta_j)``, and T(r) is the time with ``alpha_bar(T(r)) = r^2``.

    Args:
        schedule: noise levels with alpha^2 + sigma^2 = 1.
        num_steps: S, or None for the length of the list.
        variances: eta_s, `(S,)` in (0, 1), the step next to the data first; or None.
        noise_levels: r_s, `(S,)` in (0, 1), strictly falling; or None.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: both lists, values out of range or in reverse order, another number of steps, a
            schedule that is not variance preserving, or two levels at or below alpha_bar(T).

    Warns:
        UserWarning: the last level is below alpha_bar(T), and the chain starts at T instead.
    """
    if variances is not None and noise_levels is not None:
        raise ValueError(
            "fastdpm: noise_levels must be left out with variances, which determine them, "
            f"got {noise_levels!r:.60}"
        )
    name = "variances" if noise_levels is None else "noise_levels"
    values = check_vector("fastdpm", name, variances if noise_levels is None else noise_levels)
    if num_steps is not None:
        count = check_integer("fastdpm", "num_steps", num_steps, 1)
        if count != len(values):
            raise ValueError(
                f"fastdpm: num_steps must be the number of {name}, {len(values)}, got {count}; it "
                "may be left out"
            )
    log_levels = _log_levels(name, values)
    lowest = float(_log(schedule.alpha_bar(schedule.T)))
    # Two nodes at T would be one, so that only the last level may lie there or below.
    reached = log_levels <= lowest + 1e-9
    if reached[:-1].any():
        first = int(np.argmax(reached))
        raise ValueError(
            f"fastdpm: {name} must stay above the schedule's alpha_bar(T) = {np.exp(lowest):.3g} "
            f"up to the last one, got alpha_bar = {np.exp(log_levels[first]):.3g} at "
            f"{name}[{first}] of {len(values)}"
        )
    if log_levels[-1] < lowest - 1e-9:
        warn_user(
            f"fastdpm: {name} should end at the schedule's alpha_bar(T) = {np.exp(lowest):.3g} or "
            f"above, got {np.exp(log_levels[-1]):.3g}; the plan starts at T with its level"
        )
    # The log SNR keeps the digits of levels near 1, which alpha_bar itself would round away.
    log_levels = np.maximum(log_levels, lowest)
    with np.errstate(divide="ignore"):
        log_snr = log_levels - np.log(-np.expm1(log_levels))
    start = float(schedule.log_snr(schedule.T))
    times = schedule.time_at_log_snr(np.maximum(log_snr, start))
    alphas, sigmas = schedule.levels(times)
    if np.any(np.abs(alphas**2 + sigmas**2 - 1.0) > 1e-6):
        raise ValueError(
            f"fastdpm: schedule must be variance preserving with {name}, got {schedule!r}; try ddim"
        )
    if schedule.num_steps is not None:  # a list that begins with beta_1 ends at the first step
        whole = np.rint(times)
        times = np.where(np.abs(times - whole) < 1e-9, whole, times)
    if reached[-1]:
        times[-1] = schedule.T
    if not (times[0] > 0.0 and np.all(np.diff(times) > 0.0)):
        raise ValueError(
            f"fastdpm: {name} must give levels at different times, got times {times.tolist()}"
        )
    return Grid(np.append(times[::-1], 0.0))


def _log_levels(name: str, values: FloatArray) -> FloatArray:
    """Return log r_s^2 of a checked list, cleanest first."""
    inside = (values > 0.0) & (values < 1.0)
    if not inside.all():
        i = int(np.argmin(inside))
        raise ValueError(f"fastdpm: {name} must be in (0, 1), got {name}[{i}] = {values[i]:g}")
    if name == "noise_levels":
        if not np.all(np.diff(values) < 0.0):
            reverse = len(values) > 1 and bool(np.all(np.diff(values) > 0.0))
            raise ValueError(
                "fastdpm: noise_levels must fall strictly, the cleanest level first, got "
                f"{values.tolist()!s:.80}; "
                f"{'pass noise_levels[::-1]' if reverse else 'a level is sqrt(alpha_bar)'}"
            )
        return 2.0 * np.log(values)
    if len(values) > 1 and np.all(np.diff(values) < 0.0):
        raise ValueError(
            "fastdpm: variances must begin with that of the cleanest step, got values that fall "
            f"from {values[0]:g} to {values[-1]:g}; pass variances[::-1]"
        )
    return np.cumsum(np.log1p(-values))


def _log(value: Any) -> FloatArray:
    """Return the logarithm, -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(value)
