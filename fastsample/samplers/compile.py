"""What all samplers share: alpha and sigma on a grid, and building the `Plan`."""

from __future__ import annotations

import numpy.typing as npt

from fastsample._support.checks import FloatArray
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


def grid_levels(
    function: str, schedule: NoiseSchedule, grid: Grid
) -> tuple[FloatArray, FloatArray]:
    """Check schedule and grid; return (alphas, sigmas), each `(K + 1,)`, at the grid's times.

    Raises:
        TypeError: no schedule or no grid.
        ValueError: the grid starts above T.
    """
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: schedule must be a NoiseSchedule, got {schedule!r}")
    if not isinstance(grid, Grid):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: grid must be a Grid, got {grid!r}; wrap times in Grid(...)")
    if grid.times[0] > schedule.T:
        raise ValueError(
            f"{function}: grid must start at or below T = {schedule.T:g}, got {grid.times[0]:g}"
        )
    return schedule.levels(grid.times)


def compile_plan(
    function: str,
    schedule: NoiseSchedule,
    nodes: FloatArray,
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
        nodes: `(K + 1,)` times.
        prediction: the quantity that the network predicts.
        clip: bound on |x0|, a pair (lo, hi), or None.
        method: name of the sampler with its settings, for people.
        check: the laws that the rows must obey.
        **columns: the sampler's own columns, numbers or `(K,)`; the rest are neutral.
    """
    check_prediction(function, prediction)
    alphas, sigmas = schedule.levels(nodes)
    p, q = x0_terms(function, prediction, alphas[:-1], sigmas[:-1])
    low, high = clip_bounds(function, clip)
    rows = row_table(len(nodes) - 1, p=p, q=q, lo=low, hi=high, **columns)
    return Plan(nodes, rows, alphas, sigmas, prediction, method, check, schedule)
