"""Grids for steps that look back: exact over pairs of times, with costs from inner products."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsample as fs
from fastsample.planning.multistep_path import second_order_path
from fastsample.profiling.trajectories import Trajectories
from tests.helpers.networks import LINEAR

TIMES = np.array([1.0, 30.0, 120.0, 300.0, 550.0, 800.0, 990.0, 1000.0])


def random_tables(n, seed, *, holes=False, ties=False):
    rng = np.random.default_rng(seed)
    first, costs = rng.normal(size=(n, n)), rng.normal(size=(n, n, n))
    if ties:
        first, costs = np.round(first), np.round(costs)
    if holes:
        first[rng.random(first.shape) < 0.3] = np.inf
        costs[rng.random(costs.shape) < 0.3] = np.inf
    return first, costs


def path_cost(path, first, costs):
    total = first[path[0], path[1]]
    for r, t, s in zip(path, path[1:], path[2:], strict=False):
        total += costs[t, s, r]
    return total


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    holes=st.booleans(),
    ties=st.booleans(),
)
def test_brute_force(n, seed, holes, ties):
    first, costs = random_tables(n, seed, holes=holes, ties=ties)
    best, paths = second_order_path(first, costs, n - 1)
    for k in range(1, n):
        every = [
            path_cost((*reversed(chosen), 0), first, costs)
            for chosen in itertools.combinations(range(1, n), k)
        ]
        assert best[k - 1] == pytest.approx(min(every), rel=1e-12, abs=1e-12)
        assert (k in paths) == np.isfinite(min(every))
        if k in paths:
            assert len(paths[k]) == k + 1
            assert path_cost(paths[k], first, costs) == pytest.approx(best[k - 1])


def trajectories(count=4, seed=0):
    rng = np.random.default_rng(seed)
    states, estimates = rng.normal(size=(9, count, 5)), rng.normal(size=(8, count, 5))
    flat, hats = states.reshape(9, -1), estimates.reshape(8, -1)
    found = Trajectories(count, flat @ flat.T, hats @ flat.T, hats @ hats.T)
    return found, states, estimates


@pytest.mark.parametrize("schedule", [LINEAR, fs.NoiseSchedule.cosine(1000)])
def test_costs_are_those_of_the_sampler_s_own_rows(schedule):
    found, states, estimates = trajectories()
    alpha, sigma = schedule.levels(np.append(0.0, TIMES))
    table = found.second_order_errors(alpha, sigma)
    for r, t, s in itertools.combinations(range(8, -1, -1), 3):
        times = np.append(0.0, TIMES)[[r, t, s]]
        nodes = times if s == 0 else np.append(times, 0.0)
        plan = fs.dpm_solver(schedule, fs.Grid(nodes), order=2, prediction="x0")
        a, b, c = (plan.column(name)[1] for name in ("a", "b", "c1"))
        reached = a * states[t] + b * estimates[t - 1] + c * estimates[r - 1]
        expected = ((reached - states[s]) ** 2).sum() / 4
        assert table[t, s, r] == pytest.approx(expected, rel=1e-9), (r, t, s)
    assert np.isposinf(table[3, 2, 3])
    assert np.isposinf(table[3, 4, 5])


def profile(network=None):
    import torch

    from tests.helpers.networks import denoiser, model_b

    model = denoiser(network or model_b(), 2, 3, clip=1.0)
    x0 = torch.rand(6, 2, 3) * 2.0 - 1.0
    return fs.profile(model, x0, times=TIMES, trajectories=6)


def test_best_grids_are_the_cheapest():
    table = profile().costs("trajectory", method="dpm++")
    for K in (1, 2, 3, 5, 8):
        every = [
            fs.Grid([*(TIMES[i] for i in reversed(chosen)), 0.0])
            for chosen in itertools.combinations(range(8), K)
        ]
        best = table.best_grid(K)
        assert len(best) == K
        assert table.cost(best) == pytest.approx(min(table.cost(grid) for grid in every))


def test_a_single_step_is_ddim_s():
    found = profile()
    grid = fs.Grid([550.0, 0.0])
    one, two = (found.costs("trajectory", method=m).cost(grid) for m in ("ddim", "dpm++"))
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.costs("elbo", method="dpm++"), 'method must be "ddim", or "dpm\\+\\+" with'),
        (lambda p: p.costs("trajectory", method="unipc"), "method must be .*, got 'unipc'"),
        (
            lambda p: p.costs("trajectory", method="dpm++").best_grid(9),
            r"steps must be in \[1, 8\], got 9",
        ),
        (
            lambda p: p.costs("trajectory", method="dpm++").cost(fs.Grid([999, 0])),
            "grid must lie on the 8 times of the table",
        ),
        (lambda p: second_order_path(np.ones((3, 3)), np.ones((3, 3)), 1), "costs must have shape"),
        (lambda p: second_order_path(*random_tables(4, 0), 4), r"max_steps must be in \[1, 3\]"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(profile())
