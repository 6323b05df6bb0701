"""Functions that make grids of real times from a noise schedule, by its levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import check_integer, check_real
from fastsample.grids.grid import Grid
from fastsample.grids.makers import MOST_EXPONENT, distinct
from fastsample.grids.sigmas import karras_sigmas
from fastsample.schedules.schedule import NoiseSchedule

_MOST_KNOTS = 4096  # A schedule is read at so many times at most.
_EXPLODES = 2.0  # the deviation of the starting noise from which a schedule is variance exploding
_CLEANEST = 0.02  # the last sigma / alpha before data there, by measured errors (docs/choosing.md)
_NEAR_ZERO = 1e-12  # "Just above 0" is this share of T.


def blended(
    schedule: NoiseSchedule, num_steps: int, exponent: float = 1.25, share: float = 0.5
) -> Grid:
    """Make a grid by a clock between time and noise: K times and 0, denser near the data.

    The clock of time t is ``(1 - share) t / T + share s(t) / s(T)``, where ``s = sigma / (alpha +
    sigma)`` is the share of noise, from 0 to 1. It shows ``(k / K)^exponent`` at the times of the
    grid, k = K..0. One rule serves variance-preserving, continuous and flow schedules; for flow,
    where s is t, it is `power`. Multistep solvers take it by default: of all rules tried, it gave
    them the smallest errors on targets that it was not chosen on (docs/choosing.md).

    Args:
        schedule: noise levels. For a discrete schedule the times are rounded to the nearest
            integer, and moved apart where they would repeat.
        num_steps: K, at least 1; at most T for a discrete schedule.
        exponent: from 1 to 16.
        share: weight of the noise in the clock, in [0, 1].
    """
    name = "grids.blended"
    steps = _budget(name, schedule, num_steps)
    p = check_real(name, "exponent", exponent, 1.0, MOST_EXPONENT)
    weight = check_real(name, "share", share, 0.0, 1.0)
    T, whole = schedule.T, schedule.num_steps
    knots = np.linspace(0.0, T, min(whole or _MOST_KNOTS, _MOST_KNOTS) + 1)
    alpha, sigma = schedule.levels(knots)
    noise = sigma / (alpha + sigma)
    clock = (1.0 - weight) * knots / T + weight * noise / noise[-1]
    times = np.interp((np.arange(steps + 1) / steps) ** p, clock, knots)
    return Grid(times[::-1]) if whole is None else distinct(np.floor(times + 0.5).tolist())


def log_snr(schedule: NoiseSchedule, num_steps: int) -> Grid:
    """Make a grid of K real times that are evenly spaced in log SNR, followed by 0.

    Lu et al. 2022, "DPM-Solver" (arXiv:2206.00927). The end points are those of `karras`. For a
    variance-exploding schedule it is what ``grid="auto"`` means.

    Args:
        schedule: noise levels.
        num_steps: K, at least 1; at most T for a discrete schedule.
    """
    steps = _budget("grids.log_snr", schedule, num_steps)
    if steps == 1:
        return Grid([schedule.T, 0.0])
    high, low = _log_snr_ends(schedule)
    return _from_log_snr(schedule, np.linspace(high, low, steps)[1:])


def karras(schedule: NoiseSchedule, num_steps: int, rho: float = 7.0) -> Grid:
    """Make a grid of K times, evenly spaced in ``(sigma / alpha)^(1 / rho)``, followed by 0.

    Karras et al. 2022, "Elucidating the Design Space" (arXiv:2206.00364), eq. (5). The cleanest of
    the K times is t = 1 for a discrete schedule (the network's timestep 0), T / 1000 for a
    continuous one, and that of sigma / alpha = 0.02 for a variance-exploding one, such as
    `NoiseSchedule.exploding`; EDM's 0.002 needs more steps than a short run has. If alpha(T) = 0,
    where the log SNR is infinite, the spacing begins as far below T, and the first time is T
    itself.

    Args:
        schedule: noise levels.
        num_steps: K, at least 1; at most T for a discrete schedule.
        rho: exponent, positive; 7 in the paper, larger puts more times near the data.
    """
    steps = _budget("grids.karras", schedule, num_steps)
    exponent = check_real("grids.karras", "rho", rho)
    if exponent <= 0.0:
        raise ValueError(f"grids.karras: rho must be positive, got {exponent:g}")
    if steps == 1:
        return Grid([schedule.T, 0.0])
    high, low = (math.exp(-0.5 * end) for end in _log_snr_ends(schedule))
    name = "grids.karras"
    levels = karras_sigmas(name, steps, sigma_min=low, sigma_max=high, rho=exponent)
    return _from_log_snr(schedule, -2.0 * np.log(levels[1:]))


def explodes(schedule: NoiseSchedule) -> bool:
    """Return whether a schedule is variance exploding: its x_T is far wider than the data."""
    return schedule.start_scale(schedule.T) > _EXPLODES


def _budget(name: str, schedule: NoiseSchedule, num_steps: int) -> int:
    """Check the number of steps against the schedule's T, and return it."""
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: schedule must be a NoiseSchedule, got {schedule!r}")
    return check_integer(name, "num_steps", num_steps, 1, schedule.num_steps)


def _log_snr_ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """Return the log SNRs (noisiest, cleanest) between which a grid's times are spread."""
    T = schedule.T
    unit = 1.0 if schedule.num_steps else T / 1000
    high = float(schedule.log_snr(T))
    if np.isneginf(high):
        high = float(schedule.log_snr(T - unit))
    if explodes(schedule):
        # Time may be sigma itself or its logarithm, so that no share of T is a clean level. Some
        # schedules of functions stop at a noisier level than the clean one just above t = 0.
        first = float(schedule.log_snr(_NEAR_ZERO * T))
        return high, min(-2.0 * math.log(_CLEANEST), first)
    return high, float(schedule.log_snr(unit))


def _from_log_snr(schedule: NoiseSchedule, inner: npt.NDArray[Any]) -> Grid:
    """Make the grid of T, the times at which the log SNR equals `inner`, and 0."""
    times = schedule.time_at_log_snr(inner)
    return Grid(np.concatenate(([schedule.T], times, [0.0])))
