"""Finds the K steps from T to 0 that cost least, for every K at once, by dynamic programming.

Watson et al. 2021, "Learning to Efficiently Sample from Diffusion Probabilistic Models"
(arXiv:2106.03802): the evidence lower bound of a K-step sampler is a sum of one cost per step, so
that a dynamic program finds the best steps. (The paper's algorithm 2 as printed starts at ``t =
K``, which is a misprint: a path starts at T.)
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample import _native
from fastsample._support.checks import FloatArray, check_integer
from fastsample._support.threads import num_threads
from fastsample.planning.elbo import SeparableCosts

Costs: TypeAlias = SeparableCosts | npt.NDArray[np.float64]


class Paths:
    """Holds the cheapest path from 0 to every time with exactly k steps, for k = 1..max_steps.

    `best_paths` makes it. Its methods read the table of costs, which is not copied and must not be
    written to meanwhile.

    Attributes:
        costs: `(max_steps,)` cost of the best path to the last time with 1, 2, ... steps; +inf
            where there is none.
    """

    def __init__(self, costs: Costs, best: FloatArray, origin: npt.NDArray[np.int32] | None):
        self._costs = costs
        self._best = best
        self._origin = origin
        self.costs: FloatArray = np.array(best[-1, 1:])

    @property
    def max_steps(self) -> int:
        """The largest number of steps for which paths were computed."""
        return len(self.costs)

    def cost(self, num_steps: int, *, at_most: bool = False) -> float:
        """Return the cost of the best path with `num_steps` steps, or with at most as many.

        Raises:
            ValueError: no path has that many steps.
        """
        return float(self.costs[self._budget(num_steps, at_most) - 1])

    def path(self, num_steps: int, *, at_most: bool = False) -> list[int]:
        """Return the positions of the best path, ascending, 0 first and the last time last.

        Ties go to the path whose last differing step comes from the smaller position.

        Args:
            num_steps: K, in 1..max_steps.
            at_most: allow fewer steps where that is cheaper.

        Raises:
            ValueError: no path has that many steps, or the table has changed.
        """
        budget = self._budget(num_steps, at_most)
        position = len(self._best) - 1
        path = [position]
        for k in range(budget, 0, -1):
            position = self._step(position, k)
            path.append(position)
        return path[::-1]

    def _budget(self, num_steps: int, at_most: bool) -> int:
        """Return the best path's number of steps; raise ValueError if no path has a finite cost."""
        steps = check_integer("best_path", "num_steps", num_steps, 1, self.max_steps)
        if at_most:
            steps = int(np.argmin(self.costs[:steps])) + 1
        if np.isposinf(self.costs[steps - 1]):
            raise ValueError(
                f"best_path: num_steps must allow a path of finite cost, got {num_steps} over "
                f"{len(self._best)} times"
            )
        return steps

    def _step(self, position: int, k: int) -> int:
        """Return the position from which the k-th step of a path arrives at `position`."""
        if self._origin is not None:
            return int(self._origin[position, k])
        assert isinstance(self._costs, np.ndarray)
        # The dynamic program computed the same sums, so the minimum is equal bit for bit.
        sums = self._best[:position, k - 1] + self._costs[position, :position]
        origin = int(np.argmin(sums))
        if sums[origin] != self._best[position, k]:
            raise ValueError(
                "best_path: costs must be left as they were when best_paths read them, "
                f"got another cost into time {position}"
            )
        return origin


def best_paths(costs: Costs, max_steps: int) -> Paths:
    """Find the cheapest paths for every number of steps up to `max_steps`, in one run.

    A table of n times takes ``O(max_steps n^2)`` additions on torch's number of threads.
    `SeparableCosts` take ``O(max_steps n log n)`` time and need no table.

    Args:
        costs: `(n, n)` float64, ``costs[t, s]`` for the step from position t to s < t, +inf where
            it is not allowed; may be negative. The rest of the table is not read.
        max_steps: largest number of steps, at most n - 1.

    Raises:
        TypeError: `costs` is no table of numbers.
        ValueError: the table is not square, it holds NaN or -inf, or `max_steps` is too large.
    """
    if isinstance(costs, SeparableCosts):
        size = len(costs.times)
    else:
        costs = _checked_table(costs)
        size = len(costs)
    steps = check_integer("best_paths", "max_steps", max_steps, 1, size - 1)
    if isinstance(costs, SeparableCosts):
        best, origin = np.empty((size, steps + 1)), np.empty((size, steps + 1), np.int32)
        _native.separable_paths(*costs.operands(), steps, best.ctypes.data, origin.ctypes.data)
        return Paths(costs, best, origin)
    lanes = _native.path_lanes
    padded = lanes * -(-steps // lanes)
    best = np.empty((size, padded + 1))
    _native.table_paths(costs.ctypes.data, size, padded, best.ctypes.data, num_threads())
    return Paths(costs, best[:, : steps + 1], None)


def best_path(costs: Costs, num_steps: int, *, at_most: bool = False) -> tuple[list[int], float]:
    """Return the cheapest path with exactly `num_steps` steps, or at most as many, and its cost.

    Args:
        costs: as for `best_paths`.
        num_steps: K, in 1..n - 1.
        at_most: allow fewer steps where that is cheaper.

    Returns:
        The positions, ascending from 0 to n - 1, and the summed cost.

    Raises:
        TypeError: as for `best_paths`.
        ValueError: as for `best_paths`, or no path has that many steps.
    """
    paths = best_paths(costs, num_steps)
    return paths.path(num_steps, at_most=at_most), paths.cost(num_steps, at_most=at_most)


def _checked_table(costs: npt.ArrayLike) -> FloatArray:
    """Return the costs as C-contiguous float64; raise for NaN or -inf below the diagonal."""
    table = np.asarray(costs)
    if table.dtype.kind not in "fiu":
        raise TypeError(f"best_paths: costs must be a table of numbers, got {table.dtype} data")
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise ValueError(f"best_paths: costs must have shape (n, n) with n >= 2, got {table.shape}")
    table = np.ascontiguousarray(table, np.float64)
    for t in range(1, len(table)):  # row by row: this needs no second table
        least = table[t, :t].min()
        if not least > -np.inf:
            raise ValueError(
                f"best_paths: costs must be numbers or +inf below the diagonal, got {least} in "
                f"row {t}"
            )
    return table
