"""What all samplers share: the nodes and noise levels of a grid, and building the `Plan`."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_real
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import (
    Check,
    Clip,
    Prediction,
    check_prediction,
    clip_bounds,
    row_table,
    x0_terms,
)
from fastsample.schedules.schedule import NoiseSchedule

Last: TypeAlias = Literal["data", "first"] | float
"""Where the last row of a plan lands: on clean data (t = 0), at the first step (t = 1), or at any
time. Stable Diffusion's ``set_alpha_to_one=False`` is "first"."""


class Levels(NamedTuple):
    """The times between which a plan's rows go, and the noise levels there."""

    nodes: FloatArray
    """`(K + 1,)`."""
    alphas: FloatArray
    """`(K + 1,)`."""
    sigmas: FloatArray
    """`(K + 1,)`."""


def grid_levels(function: str, schedule: NoiseSchedule, grid: Grid, last: Last = "data") -> Levels:
    """Check schedule and grid; return the nodes and levels of a plan on the grid.

    Args:
        function: name of the sampler's function, for messages.
        schedule: noise levels.
        grid: K times and the final 0.
        last: where the last row lands. Times of the grid at or below it are left out: a row from
            there would go up, or do nothing.

    Raises:
        TypeError: no schedule or no grid, or a `last` of the wrong type.
        ValueError: the grid starts above T, or at or below `last`.
    """
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: schedule must be a NoiseSchedule, got {schedule!r}")
    if not isinstance(grid, Grid):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: grid must be a Grid, got {grid!r}; wrap times in Grid(...)")
    if grid.times[0] > schedule.T:
        raise ValueError(
            f"{function}: grid must start at or below T = {schedule.T:g}, got {grid.times[0]:g}"
        )
    end = _last_time(function, schedule, last)
    if not grid.times[0] > end:
        raise ValueError(
            f"{function}: last must be below the grid's first time {grid.times[0]:g}, got {end:g}"
        )
    nodes = np.append(grid.times[grid.times > end], end)
    return Levels(nodes, *schedule.levels(nodes))


def _last_time(function: str, schedule: NoiseSchedule, last: Last) -> float:
    """Return the time at which the last row lands."""
    if not isinstance(last, str):
        return check_real(function, "last", last, 0.0, schedule.T)
    if last == "data":
        return 0.0
    if last != "first":
        raise ValueError(f'{function}: last must be "data", "first" or a time, got {last!r}')
    if schedule.num_steps is None:
        raise ValueError(
            f'{function}: last must be "data" or a time for a schedule without whole steps, '
            f'got "first" for {schedule!r}'
        )
    return 1.0


def compile_plan(
    function: str,
    schedule: NoiseSchedule,
    levels: Levels,
    *,
    prediction: Prediction,
    clip: Clip,
    method: str,
    check: Check = "all",
    **columns: npt.ArrayLike,
) -> Plan:
    """Make a plan from a sampler's coefficients; p, q, lo, hi follow from prediction and clip.

    Args:
        function: name of the sampler's function, for messages.
        schedule: noise levels.
        levels: what `grid_levels` returned.
        prediction: the quantity that the network predicts.
        clip: bound on |x0|, a pair (lo, hi), or None.
        method: name of the sampler with its settings, for people.
        check: the laws that the rows must obey.
        **columns: the sampler's own columns, numbers or `(K,)`; the rest are neutral.
    """
    check_prediction(function, prediction)
    nodes, alphas, sigmas = levels
    p, q = x0_terms(function, prediction, alphas[:-1], sigmas[:-1])
    low, high = clip_bounds(function, clip)
    rows = row_table(len(nodes) - 1, p=p, q=q, lo=low, hi=high, **columns)
    return Plan(nodes, rows, alphas, sigmas, prediction, method, check, schedule)
