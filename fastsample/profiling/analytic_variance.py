"""Computes the best scalar reverse variance of each step from a model's measured errors."""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid, positions_in
from fastsample.profiling.statistics import Statistics
from fastsample.schedules.transition import transition


def analytic_variance(statistics: Statistics, grid: Grid, estimate: str) -> FloatArray:
    """Return the Analytic-DPM variance of each reverse step; see `Profile.analytic_variance`."""
    times = np.append(0.0, statistics.times)
    positions = positions_in("analytic_variance", grid, times, "profile")[:-1] - 1
    alpha, sigma = statistics.schedule.levels(grid.times)
    if estimate == "error":
        error = statistics.error[positions] / statistics.dims
    elif estimate == "eps":
        fraction = np.maximum(1.0 - statistics.eps_square[positions] / statistics.dims, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = fraction * (sigma[:-1] / alpha[:-1]) ** 2
        # Where alpha is 0, x is pure noise, and epsilon says nothing about the error of x0.
        measured = statistics.error[positions] / statistics.dims
        error = np.where(alpha[:-1] == 0.0, measured, error)
    else:
        raise ValueError(f'analytic_variance: estimate must be "error" or "eps", got {estimate!r}')
    pair = transition(alpha[1:], sigma[1:], alpha[:-1], sigma[:-1])
    weight = alpha[1:] * pair.variance / sigma[:-1] ** 2
    variance = pair.posterior_variance + weight**2 * error
    variance[-1] = 0.0
    return variance
