"""Times the shortest-path planner: on a table against NumPy, and on 100,000 times.

    python -m benchmarks.bench_planner

A table needs at least ``K T^2 / 2`` additions and as many minima, which is printed as a rate. The
NumPy candidate handles one budget (number of steps) at a time with an argmin. It is timed over a
few budgets and scaled, since its time per budget is constant. On 100,000 times the costs are
separable, and the planner uses a line envelope instead of a table.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import facts, write
from fastsample.planning.elbo import SeparableCosts
from fastsample.planning.shortest_path import best_paths

TABLE_STEPS, BUDGETS, LONG = 4000, 256, 100_000


def numpy_paths(table: np.ndarray, budgets: int) -> float:
    """Cost of the best path with `budgets` steps; keeps the argmins as a planner must."""
    size = len(table)
    best = np.full(size, np.inf)
    best[0] = 0.0
    origins = []
    for _ in range(budgets):
        sums = best + table
        origins.append(sums.argmin(1))
        best = sums[np.arange(size), origins[-1]]
    return float(best[-1])


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def long_costs(n: int) -> SeparableCosts:
    """Costs of a perfect network on Gaussian data, with small ripples as real profiles have."""
    log = -np.cumsum(np.append(0.0, np.linspace(1e-6, 2e-4, n)))
    noise = -np.expm1(log)
    ripple = 1 + 0.01 * np.sin(0.7 * np.arange(n + 1))
    error = 10 * noise / (noise + 0.25 * np.exp(log)) * ripple
    decoder = np.append(0.0, 5.0 * np.log(noise[1:]) + error[1:] / (2 * noise[1:]))
    return SeparableCosts(
        "small", np.linspace(0, 1, n + 1), np.exp(log), noise, error, decoder, 100
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats

    n = TABLE_STEPS + 1
    rng = np.random.default_rng(0)
    span = np.arange(n)[:, None] - np.arange(n)
    table = np.where(span > 0, rng.random((n, n)) * span, np.inf)
    ours = seconds(lambda: best_paths(table, BUDGETS), repeats)
    few = 4
    theirs = seconds(lambda: numpy_paths(table, few), repeats) * BUDGETS / few
    assert best_paths(table, few).cost(few) == numpy_paths(table, few)
    rate = BUDGETS * n * (n - 1) / 2 / ours / 1e9
    print(f"table, T = {TABLE_STEPS}, every K to {BUDGETS}: {ours:.3f} s, {rate:.1f} G edges/s")
    print(f"  NumPy, a budget at a time: {theirs:.1f} s, {theirs / ours:.0f} x")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    costs = long_costs(LONG)
    long = seconds(lambda: best_paths(costs, BUDGETS), max(1, repeats // 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"envelope, T = {LONG}, every K to {BUDGETS}: {long:.2f} s")
    print(
        f"  the process held {before / 1024:.0f} MB at its peak before, {peak / 1024:.0f} MB after"
    )
    path = write(
        "planner",
        {
            "facts": facts(torch.device("cpu")),
            "table": {
                "steps": TABLE_STEPS,
                "budgets": BUDGETS,
                "seconds": ours,
                "numpy_seconds": theirs,
                "ratio": theirs / ours,
            },
            "envelope": {
                "steps": LONG,
                "budgets": BUDGETS,
                "seconds": long,
                "peak_mb": peak / 1024,
            },
        },
    )
    print(path.name)


if __name__ == "__main__":
    main()
