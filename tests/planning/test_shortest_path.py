"""Exact shortest paths: golden numbers, brute force, and the two forms against each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsample.planning.elbo import SeparableCosts, decoder_costs, elbo_costs
from fastsample.planning.shortest_path import best_path, best_paths
from fastsample.schedules.schedule import NoiseSchedule
from tests.helpers.refusals import check_refusal, refusals
from tests.helpers.stored import stored

DATA = stored("elbo_dp")
GAUSSIANS = ["gauss_T20", "gauss_T100_linear"]
DECODERS = {"beta": "forward", "adpm": "posterior", "opt": "optimal"}


def table_of(rows) -> np.ndarray:
    """A square table from rows of costs to s = 0..t-1, None for no edge."""
    table = np.full((len(rows), len(rows)), np.inf)
    for t, row in enumerate(rows):
        for s, cost in enumerate(row[:t]):
            table[t, s] = np.inf if cost is None else cost
    return table


def separable(case, edge, decoder) -> SeparableCosts:
    schedule, T = NoiseSchedule.from_betas(case["betas"]), case["T"]
    t = np.arange(T + 1)
    last = decoder_costs(schedule, case["m"], dims=case["D"], decoder=decoder)
    return SeparableCosts(
        edge,
        t.astype(float),
        schedule.alpha_bar(t),
        schedule.sigma(t) ** 2,
        np.append(0.0, case["m"]),
        np.append(0.0, last),
        case["D"],
    )


@pytest.mark.parametrize("case", DATA["random_dp"], ids=lambda c: f"{c['kind']}-{c['T']}")
def test_random_tables(case):
    T = case["T"]
    paths = best_paths(table_of(case["L_rows"]), T)
    for K, expected in case["optimal"].items():
        if expected is None or expected["cost"] is None:
            # Infeasible: more steps than times, or holes in the way.
            match = "num_steps must (be in|allow a path)"
            with pytest.raises(ValueError, match=match):
                paths.path(int(K))
            continue
        assert paths.cost(int(K)) == pytest.approx(expected["cost"], rel=1e-12)
        assert paths.path(int(K)) == expected["path_smallest_s_tiebreak"]
    for K, expected in case["at_most"].items():
        if expected is not None and int(K) <= T:
            assert paths.cost(int(K), at_most=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_optimal_paths_of_gaussian_data(name, variance, decoder):
    case = DATA[name]
    schedule = NoiseSchedule.from_betas(case["betas"])
    costs = elbo_costs(
        schedule, case["m"], dims=case["D"], variance=variance, decoder=DECODERS[decoder]
    )
    dense = best_paths(costs, case["T"])
    lines = best_paths(separable(case, variance, DECODERS[decoder]), case["T"])
    # Steps next to t = 1 cost 1e4 times the rest: that is what the sums round at.
    np.testing.assert_allclose(lines.costs, dense.costs, rtol=1e-12, atol=1e-12)
    found = case["optimal"].get(variance, {}).get(decoder, {})
    for K, expected in found.items():
        for paths in (dense, lines):
            assert paths.cost(int(K)) == pytest.approx(expected["cost_nats"], rel=1e-9, abs=1e-9)
            assert paths.path(int(K)) == expected["path"]


def test_the_trap_of_divide_and_conquer():
    """A learned-range table that is not Monge: the true optimum, not the larger cost."""
    case = DATA["nonmonge_trap_T20"]
    table = table_of(case["tables"]["range"])  # column 0 is the "beta" decoder
    for K, expected in case["optimal"]["range"]["beta"].items():
        path, cost = best_path(table, int(K))
        assert cost == pytest.approx(expected["cost_nats"], rel=1e-9)
        assert path == expected["path"]


def brute_force(table, K):
    last = len(table) - 1
    best = (np.inf, [])
    for inner in itertools.combinations(range(1, last), K - 1):
        path = [0, *inner, last]
        cost = 0.0
        for s, t in itertools.pairwise(path):
            cost = cost + table[t, s]
        best = min(best, (cost, path))
    return best


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.integers(0, 2**31), st.sampled_from(["normal", "ties", "holes"]))
def test_brute_force(n, seed, kind):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, n))
    if kind == "ties":
        table = rng.integers(-2, 3, (n, n)).astype(float)
    if kind == "holes":
        table[rng.random((n, n)) < 0.4] = np.inf
    paths = best_paths(table, n - 1)
    for K in range(1, n):
        cost, _ = brute_force(table, K)
        assert paths.costs[K - 1] == pytest.approx(cost, abs=1e-12)
        if np.isfinite(cost):
            path = paths.path(K)
            assert len(path) == K + 1
            assert sum(table[t, s] for s, t in itertools.pairwise(path)) == pytest.approx(cost)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(0, 2**31), st.sampled_from(["small", "large", "mse"]))
def test_envelope_of_lines_is_exact_for_any_errors(n, seed, edge):
    """Not only for errors that rise with t, as a perfect network's do."""
    rng = np.random.default_rng(seed)
    log = -np.cumsum(np.append(0.0, rng.uniform(1e-4, 0.3, n - 1)))
    costs = SeparableCosts(
        edge,
        np.arange(float(n)),
        np.exp(log),
        -np.expm1(log),
        rng.uniform(0.0, 5.0, n),
        rng.normal(size=n),
        7,
    )
    lines, dense = best_paths(costs, n - 1), best_paths(costs.table(), n - 1)
    np.testing.assert_allclose(lines.costs, dense.costs, rtol=1e-10, atol=1e-10)
    table = costs.table()
    for K in (1, (n - 1) // 2 or 1, n - 1):
        cost = sum(table[t, s] for s, t in itertools.pairwise(lines.path(K)))
        assert cost == pytest.approx(lines.cost(K), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("n", [2, 3, 65, 130, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_blocks_and_tiles_change_nothing(n, threads):
    table = np.random.default_rng(n).normal(size=(n, n))
    masked = np.where(np.tri(n, k=-1, dtype=bool), table, np.inf)
    best = np.full(n, np.inf)
    best[0] = 0.0
    expected = []
    for _ in range(min(n - 1, 40)):
        best = (best[None] + masked).min(1)
        expected.append(best[-1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = best_paths(table, len(expected)).costs
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(got, expected)  # a sum and a minimum have one result


def test_a_hundred_thousand_times():
    n = 100_001
    log = -np.cumsum(np.append(0.0, np.linspace(1e-7, 2e-4, n - 1)))
    noise = -np.expm1(log)
    error = noise / (noise + 0.25 * np.exp(log))
    with np.errstate(divide="ignore"):
        decoder = np.log(noise + 1e-3) + error
    costs = SeparableCosts("small", np.linspace(0, 1, n), np.exp(log), noise, error, decoder, 1)
    paths = best_paths(costs, 4)
    thin = np.unique(np.append(paths.path(4), np.arange(0, n, 1000)))
    fewer = SeparableCosts(
        "small",
        *(v[thin] for v in (costs.times, costs.alpha_bar, noise, error, decoder)),
        1,
    )
    assert best_paths(fewer.table(), 4).cost(4) == pytest.approx(paths.cost(4), rel=1e-12)


def test_tables_that_are_no_contiguous_float64():
    table = np.random.default_rng(0).integers(0, 9, (12, 12))
    expected = best_paths(table.astype(float), 5).costs
    for other in (table, np.asfortranarray(table), table.astype(np.float32), table[::1].tolist()):
        assert np.array_equal(best_paths(other, 5).costs, expected)
    table = table.astype(float)
    table[np.triu_indices(12)] = np.nan  # not read
    assert np.array_equal(best_paths(table, 5).costs, expected)


def test_a_table_that_changed_gives_no_path():
    table = np.random.default_rng(0).normal(size=(9, 9))
    paths = best_paths(table, 4)
    assert len(paths.path(4)) == 5
    table -= 100.0
    with pytest.raises(ValueError, match="best_path: costs must be left as they were"):
        paths.path(4)


THREE = np.ones((3, 3))


@refusals(
    paths={
        "no square": (lambda: best_paths(np.ones((3, 4)), 2), ValueError, r"costs must have shape"),
        "text": (lambda: best_paths([["a"]], 1), TypeError, r"costs must be a table of numbers"),
        "NaN": (lambda: best_paths(THREE * np.nan, 2), ValueError, r"got nan in row 1"),
        "-inf": (lambda: best_paths(-THREE / 0.0, 2), ValueError, r"got -inf in row 1"),
        "K > T": (lambda: best_path(THREE, 3), ValueError, r"max_steps must be in \[1, 2\], got 3"),
        "K = 0": (lambda: best_path(THREE, 0), ValueError, r"max_steps must be"),
        "K of a run": (
            lambda: best_paths(THREE, 1).path(2),
            ValueError,
            r"num_steps must be in \[1, 1\], got 2",
        ),
        "infeasible": (
            lambda: best_path(np.full((3, 3), np.inf), 2),
            ValueError,
            r"num_steps must allow a path of finite cost, got 2 over 3 times",
        ),
        "infeasible at most": (
            lambda: best_path(np.full((3, 3), np.inf), 2, at_most=True),
            ValueError,
            r"num_steps must allow a path of finite cost",
        ),
    }
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_refused(call, error, match):
    check_refusal(call, error, match)
