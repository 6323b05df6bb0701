"""Which times: coordinate search over the teacher's, every candidate with rows of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.tuning.regression import Fitted

Fit = Callable[[tuple[int, ...], Fitted | None], tuple[Fitted, float]]

_GAIN = 1e-3  # relative; less is not worth a move
_SWEEPS = 8  # with each size of move


@dataclass(frozen=True)
class Found:
    """Where the search ended.

    Attributes:
        fitted: the run on the best times.
        error: of it, on the samples of the search.
        runs: candidates that were run.
    """

    fitted: Fitted
    error: float
    runs: int


def nearest_positions(times: FloatArray, grid: FloatArray) -> tuple[int, ...] | None:
    """Distinct positions in `times` nearest to falling grid times; None where there is no room."""
    chosen: list[int] = []
    for t in grid:
        position = int(np.argmin(np.abs(times - t)))
        if chosen:
            position = min(position, chosen[-1] - 1)
        chosen.append(position)
    # Push up from below whatever was pressed against the end.
    for i in range(len(chosen) - 1, -1, -1):
        least = chosen[i + 1] + 1 if i + 1 < len(chosen) else 0
        chosen[i] = max(chosen[i], least)
    return tuple(chosen) if chosen[0] < len(times) else None


def search_times(
    fit: Fit, start: tuple[int, ...], num_times: int, *, more: Callable[[], bool]
) -> Found:
    """Move one time at a time, by shrinking strides, while that lowers the error.

    A move changes only the rows from the one before it on, so that `fit` may keep the rest. The
    order is from the data to the noise, where that saves most.

    Args:
        fit: ``(chosen, known) -> (run, error)``.
        start: positions to begin at.
        num_times: how many there are.
        more: asked before each candidate; False ends the search.
    """
    best, error = fit(start, None)
    runs, seen = 1, {start}
    stride = max(1, num_times // (4 * len(start)))
    while stride >= 1:
        for _ in range(_SWEEPS):
            moved = False
            for row in range(len(start) - 1, -1, -1):
                for step in (stride, -stride):
                    chosen = list(best.chosen)
                    chosen[row] += step
                    candidate = tuple(chosen)
                    if candidate in seen or not _valid(candidate, num_times):
                        continue
                    if not more():
                        return Found(best, error, runs)
                    seen.add(candidate)
                    found, e = fit(candidate, best)
                    runs += 1
                    if e < error * (1.0 - _GAIN):
                        best, error, moved = found, e, True
                        break
            if not moved:
                break
        stride //= 2
    return Found(best, error, runs)


def _valid(chosen: tuple[int, ...], num_times: int) -> bool:
    falling = all(a > b for a, b in itertools.pairwise(chosen))
    return falling and chosen[-1] >= 0 and chosen[0] < num_times
