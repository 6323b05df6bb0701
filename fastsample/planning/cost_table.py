"""The class `CostTable`: the cost of every step t -> s, and the grids that cost least."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray, check_bool, check_integer, frozen
from fastsample.grids.grid import Grid, positions_in
from fastsample.planning.elbo import SeparableCosts
from fastsample.planning.shortest_path import Paths, best_paths
from fastsample.schedules.schedule import NoiseSchedule

Objective: TypeAlias = Literal["elbo", "mse", "trajectory"]


class CostTable:
    """Holds the cost of every step between the times of a profile; `Profile.costs` makes it.

    Attributes:
        schedule: the noise levels that the costs belong to.
        times: `(n + 1,)` ascending, 0 first.
        objective: "elbo" (nats, summed over dimensions), "mse" (squared data units, summed over
            dimensions, time as a share of T) or "trajectory" (squared data units, mean over
            dimensions).
        variance: name of the reverse steps' variance; None where the objective has none.
        decoder_variance: `(n,)` variance of the last step from each time, in squared data units.
            The table of another profile can use it as its decoder. None if the objective has none.
        start: `(n + 1,)` costs of starting at each time; None if all grids start at the last.
        prior: cost in nats that every grid from the last time has besides; 0 without a prior.
        dims: number of dimensions of a sample.
        density: whether the last step's cost is that of a Gaussian density, for data without bins;
            its nats may be negative, and are no bits.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        times: FloatArray,
        costs: FloatArray | SeparableCosts,
        *,
        objective: Objective,
        dims: int,
        variance: str | None = None,
        decoder_variance: FloatArray | None = None,
        prior: float = 0.0,
        last_two: FloatArray | None = None,
        start: FloatArray | None = None,
        density: bool = False,
    ) -> None:
        self.schedule = schedule
        self.times = frozen(times)
        self.objective: Objective = objective
        self.variance = variance
        self.decoder_variance = decoder_variance
        self.prior = prior
        self.dims = dims
        self.density = density
        self._costs = costs
        # If the last step's variance depends on the step before, this is the cost of t -> s -> 0.
        self._last_two = last_two
        self.start = None if start is None else frozen(start)
        self._full_table: FloatArray | None = None
        self._paths: Paths | None = None

    @property
    def costs(self) -> FloatArray:
        """The costs `(n + 1, n + 1)` of the steps from t (row) to s (column), +inf where s >= t.

        With decoder="respaced" column 0 holds the cost of the last two steps together, through the
        best time in between.
        """
        return np.array(self._table())

    def best_grid(self, steps: int, *, at_most: bool = False) -> Grid:
        """Return the grid of `steps` network calls that costs least.

        It is exact: no other choice of the times is cheaper (Watson et al. 2021,
        arXiv:2106.03802).

        Args:
            steps: K, the number of network calls.
            at_most: allow fewer calls where that is cheaper.

        Raises:
            ValueError: more steps than there are times, or no grid of finite cost.
        """
        return self.best_grids([steps], at_most=at_most)[steps]

    def best_grids(self, steps: Iterable[int], *, at_most: bool = False) -> dict[int, Grid]:
        """Return the cheapest grid for each number of steps, found in one dynamic program."""
        # The dynamic program has one more edge if the start has a cost, and one edge less if the
        # last two steps have one common cost.
        more = int(self.start is not None) - int(self._last_two is not None)
        least = max(1, 1 - more)
        check_bool("best_grid", "at_most", at_most)
        if not isinstance(steps, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"best_grids: steps must be several numbers, got {steps!r}")
        budgets = [
            check_integer("best_grid", "steps", k, least, len(self.times) - 1) for k in steps
        ]
        paths = self._planned(max(budgets, default=least) + more)
        return {k: self._grid(paths.path(k + more, at_most=at_most)) for k in budgets}

    def cost(self, grid: Grid) -> float:
        """Return the cost of a grid: its steps and its start, without the prior.

        Raises:
            ValueError: a grid with times that the table does not have, or one that must start at
                the last time and does not.
        """
        return float(self.terms(grid).sum())

    def terms(self, grid: Grid) -> FloatArray:
        """Return the cost of each step of a grid, `(K,)`, noisiest first.

        The first includes the cost of the start.

        Raises:
            ValueError: as for `cost`.
        """
        positions = positions_in("cost", grid, self.times, "table")
        if self.objective == "elbo" and positions[0] != len(self.times) - 1:
            raise ValueError(
                f"cost: grid must start at {self.times[-1]:g}, where the prior is, "
                f"got {grid.times[0]:g}"
            )
        t, s = positions[:-1], positions[1:]
        costs = self._costs
        terms = costs.at(t, s) if isinstance(costs, SeparableCosts) else costs[t, s]
        if self._last_two is not None:
            if len(grid) < 2:
                raise ValueError(
                    'cost: grid must have 2 steps or more with decoder="respaced", got 1'
                )
            last_two = self._last_two[positions[-3], positions[-2]]
            return np.append(terms[:-1], last_two - terms[-2])
        if self.start is not None:
            terms[0] += self.start[positions[0]]
        return terms

    @property
    def respaced(self) -> bool:
        """Whether the last step's cost depends on the step before it (decoder="respaced")."""
        return self._last_two is not None

    def bits_per_dim(self, grid: Grid) -> float:
        """Return the ELBO of a grid in bits per dimension, prior included ("elbo" only).

        Raises:
            ValueError: a table of another objective, or of data without bins: `nats_per_dim` is
                their bound. For data in [-1, 1] whose bins would be 2/255 apart, a density of n
                nats stands for about ``n / log(2) + log2(127.5)`` bits.
        """
        self._check_elbo("bits_per_dim")
        if self.density:
            raise ValueError(
                "bits_per_dim: table must be of data on bins, got one of a density; nats_per_dim "
                "gives its bound"
            )
        return self.nats_per_dim(grid) / math.log(2.0)

    def nats_per_dim(self, grid: Grid) -> float:
        """Return the ELBO of a grid in nats per dimension, prior included ("elbo" only).

        For data without bins it bounds a negative log density, which may be negative and depends
        on the unit of the data: data that are c times as large have log(c) nats more.

        Raises:
            ValueError: a table of another objective.
        """
        self._check_elbo("nats_per_dim")
        return (self.cost(grid) + self.prior) / self.dims

    def _check_elbo(self, function: str) -> None:
        """Raise ValueError for a table of another objective than "elbo"."""
        if self.objective != "elbo":
            raise ValueError(
                f'{function}: objective must be "elbo", got a table of {self.objective!r}'
            )

    def __repr__(self) -> str:
        variance = f", variance={self.variance!r}" if self.variance else ""
        decoder = ', decoder="respaced"' if self.respaced else ""
        density = ", density" if self.density else ""
        times = f"{len(self.times) - 1} times"
        return f"CostTable({self.objective!r}{variance}{decoder}{density}, {times})"

    def _planned(self, budget: int) -> Paths:
        """Return the paths of up to `budget` edges or more; they are stored for later calls."""
        if self._paths is None or self._paths.max_steps < budget:
            # Double the limit each time, so that requests for 1, 2, 3, ... steps rarely rerun it.
            doubled = 0 if self._paths is None else 2 * self._paths.max_steps
            edges = self._edges()
            size = len(edges.times) if isinstance(edges, SeparableCosts) else len(edges)
            self._paths = best_paths(edges, min(max(budget, doubled), size - 1))
        return self._paths

    def _table(self) -> FloatArray:
        """Return the costs `(n + 1, n + 1)` as an array, which is made at the first call."""
        if self._full_table is None:
            costs = self._costs
            self._full_table = costs.table() if isinstance(costs, SeparableCosts) else costs
        return self._full_table

    def _edges(self) -> FloatArray | SeparableCosts:
        """Return the costs that the dynamic program minimises.

        If a grid may start at any time, the start is a step from one extra time, the noise.
        """
        if self.start is None:
            return self._costs
        size = len(self.times)
        edges = np.full((size + 1, size + 1), np.inf)
        edges[:size, :size] = self._table()
        edges[size, :size] = self.start
        return edges

    def _grid(self, path: list[int]) -> Grid:
        """Return the grid of the times whose indices, ascending, a path selects."""
        if self._last_two is not None:
            path.insert(1, int(np.argmin(self._last_two[path[1]])))
        if self.start is not None:
            path = path[:-1]
        return Grid(self.times[path[::-1]])
