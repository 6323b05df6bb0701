"""Finds the best grids for DPM-Solver++ 2M, where a step's cost depends on the step before."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastsample import _native
from fastsample._support.checks import FloatArray, check_array, check_integer, frozen
from fastsample.grids.grid import Grid, positions_in
from fastsample.schedules.schedule import NoiseSchedule

MOST_TIMES = 256  # The table holds 256^3 float64 values, which are 134 MB.


def second_order_path(
    first: FloatArray, costs: FloatArray, max_steps: int
) -> tuple[FloatArray, dict[int, list[int]]]:
    """Return the cheapest paths from any position to position 0 with 1..max_steps steps.

    Args:
        first: `(n, n)` costs ``first[t, s]`` of a path's first step from t to s < t, with the cost
            of starting at t; +inf where no path may start.
        costs: `(n, n, n)` costs ``costs[t, s, r]`` of the step from t to s after one from r to t.
        max_steps: largest number of steps, at most n - 1.

    Returns:
        The costs `(max_steps,)`, +inf where there is no path, and the positions of each path by
        number of steps, falling, 0 last. Ties go to the path of smaller positions.

    Raises:
        ValueError: tables whose shapes do not fit each other, NaN, or too many steps.
    """
    first = np.ascontiguousarray(check_array("second_order_path", "first", first, infinite=True))
    costs = np.ascontiguousarray(check_array("second_order_path", "costs", costs, infinite=True))
    n = len(first)
    if first.shape != (n, n) or costs.shape != (n, n, n) or n < 2:
        raise ValueError(
            "second_order_path: costs must have shape (n, n, n) for first (n, n), "
            f"got {costs.shape} and {first.shape}"
        )
    steps = check_integer("second_order_path", "max_steps", max_steps, 1, n - 1)
    best = np.empty((steps, n, n))
    origin = np.empty((steps, n, n), np.int32)
    _native.multistep_paths(
        first.ctypes.data, costs.ctypes.data, n, steps, best.ctypes.data, origin.ctypes.data
    )
    paths: dict[int, list[int]] = {}
    for k in range(steps):
        t = int(np.argmin(best[k, 0]))
        if np.isposinf(best[k, 0, t]):
            continue
        path, s = [0, t], 0
        for earlier in range(k, 0, -1):
            s, t = t, int(origin[earlier, s, t])
            path.append(t)
        paths[k + 1] = path[::-1]
    return best[:, 0].min(axis=1), paths


class SecondOrderTable:
    """Holds the costs of DPM-Solver++ 2M steps between the times of a profile.

    `Profile.costs` makes it.

    Attributes:
        schedule: the noise levels that the costs belong to.
        times: `(n + 1,)` ascending, 0 first.
        objective: always "trajectory".
    """

    objective = "trajectory"

    def __init__(
        self, schedule: NoiseSchedule, times: FloatArray, first: FloatArray, costs: FloatArray
    ) -> None:
        self.schedule = schedule
        self.times = frozen(times)
        self._first, self._costs = first, costs
        self._paths: dict[int, list[int]] = {}

    def best_grid(self, steps: int) -> Grid:
        """Return the grid of `steps` network calls that costs least; no other choice is cheaper."""
        return self.best_grids([steps])[steps]

    def best_grids(self, steps: Iterable[int]) -> dict[int, Grid]:
        """Return the cheapest grid for each number of steps, found in one dynamic program."""
        budgets = [check_integer("best_grid", "steps", k, 1, len(self.times) - 1) for k in steps]
        if any(k not in self._paths for k in budgets):
            _, self._paths = second_order_path(self._first, self._costs, max(budgets))
        return {k: Grid(self.times[self._paths[k]]) for k in budgets}

    def cost(self, grid: Grid) -> float:
        """Return the cost of a grid: mean squared data units, summed over steps.

        Raises:
            ValueError: a grid with times that the table does not have.
        """
        positions = positions_in("cost", grid, self.times, "table")
        r, t, s = positions[:-2], positions[1:-1], positions[2:]
        return float(self._first[positions[0], positions[1]] + self._costs[t, s, r].sum())

    def __repr__(self) -> str:
        return f'SecondOrderTable("dpm++", {len(self.times) - 1} times)'
