"""Chooses a plan's times by a coordinate search over the teacher's times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.tuning.regression import FittedRun

Fit: TypeAlias = Callable[[tuple[int, ...], FittedRun | None], tuple[FittedRun, float]]
"""Fits a candidate: ``(positions, best run so far) -> (run, error)``."""

_MIN_GAIN = 1e-3  # A move must decrease the error by at least this fraction.
_MAX_SWEEPS = 8  # limits the passes over all times for each stride


@dataclass(frozen=True)
class SearchResult:
    """Holds the result of a search.

    Attributes:
        best: the run on the best times.
        error: its error on the samples of the search.
        num_runs: number of candidates that were run.
    """

    best: FittedRun
    error: float
    num_runs: int


def nearest_positions(times: FloatArray, grid: FloatArray) -> tuple[int, ...] | None:
    """Return distinct positions in ascending `times`, nearest to the descending times of a grid.

    Returns None if there are fewer times than the grid has.
    """
    positions: list[int] = []
    for t in grid:
        position = int(np.argmin(np.abs(times - t)))
        if positions:
            position = min(position, positions[-1] - 1)
        positions.append(position)
    # Making positions distinct may push the last ones below 0; this moves them up again.
    for i in range(len(positions) - 1, -1, -1):
        least = positions[i + 1] + 1 if i + 1 < len(positions) else 0
        positions[i] = max(positions[i], least)
    return tuple(positions) if positions[0] < len(times) else None


def search_times(
    fit: Fit, start: tuple[int, ...], num_times: int, *, has_budget: Callable[[], bool]
) -> SearchResult:
    """Move one time at a time, by shrinking strides, while that lowers the error.

    A move changes only the rows from the one before it on, so that `fit` may reuse the others. The
    order of the moves is from the data to the noise, because late rows leave the most to reuse.

    Args:
        fit: runs a candidate.
        start: positions of the first candidate, descending.
        num_times: number of times to choose from.
        has_budget: called before each candidate; False ends the search.
    """
    best, error = fit(start, None)
    num_runs, seen = 1, {start}
    stride = max(1, num_times // (4 * len(start)))
    while stride >= 1:
        for _ in range(_MAX_SWEEPS):
            moved = False
            for row in range(len(start) - 1, -1, -1):
                for step in (stride, -stride):
                    positions = list(best.positions)
                    positions[row] += step
                    candidate = tuple(positions)
                    if candidate in seen or not _is_valid(candidate, num_times):
                        continue
                    if not has_budget():
                        return SearchResult(best, error, num_runs)
                    seen.add(candidate)
                    run, candidate_error = fit(candidate, best)
                    num_runs += 1
                    if candidate_error < error * (1.0 - _MIN_GAIN):
                        best, error, moved = run, candidate_error, True
                        break
            if not moved:
                break
        stride //= 2
    return SearchResult(best, error, num_runs)


def _is_valid(positions: tuple[int, ...], num_times: int) -> bool:
    descending = all(a > b for a, b in itertools.pairwise(positions))
    return descending and positions[-1] >= 0 and positions[0] < num_times
