"""Cost tables of profiles: golden numbers, the best grids, and what the tables do not allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastsample as fs
from tests.helpers.diagonal import DATA, SMALL, golden

CASES = ["gauss_T20", "gauss_T100_linear", "nonmonge_trap_T20"]
VARIANCES = {"small": "small", "large": "large", "range": "learned_range"}
DECODERS = {"beta": "forward", "adpm": "posterior", "opt": "optimal"}
RELATIVE = 1e-9
"""The golden file's rule for costs."""


def tables(name):
    """(variance, decoder, cost table) of each golden name of a case."""
    case, data = golden(name)
    found = data.profile(case["v01"])
    for variance in case["optimal"]:
        for decoder in case["optimal"][variance]:
            options = {"variance": VARIANCES[variance], "decoder": DECODERS[decoder]}
            yield variance, decoder, found.costs("elbo", **options)


# ---- golden numbers ----


@pytest.mark.parametrize("name", CASES)
def test_golden_tables(name):
    case, data = golden(name)
    found = data.profile(case["v01"])
    np.testing.assert_allclose(found.error, case["m"], rtol=1e-12)
    for variance, rows in case["tables"].items():
        table = found.costs(variance=VARIANCES[variance], decoder="forward").costs
        assert np.all(np.isposinf(table[np.triu_indices(len(table))]))
        if isinstance(rows, list):
            for t, row in enumerate(rows):
                expected = np.array(row[:t], float)
                np.testing.assert_allclose(table[t, :t], expected, rtol=RELATIVE)
            continue
        for t, s, cost in rows["spot"]:
            assert table[t, s] == pytest.approx(cost, rel=RELATIVE)
        inner = table[1:, 1:][np.tri(case["T"], k=-1, dtype=bool)]
        assert inner.sum() == pytest.approx(rows["sum_s_ge_1"], rel=RELATIVE)


@pytest.mark.parametrize("name", CASES)
def test_golden_decoders(name):
    case, data = golden(name)
    for decoder, expected in case["decoder_var"].items():
        costs = data.profile().costs("elbo", decoder=DECODERS[decoder])
        np.testing.assert_allclose(costs.decoder_variance, expected, rtol=RELATIVE)
        np.testing.assert_allclose(costs.costs[1:, 0], case["L_t0"][decoder], rtol=RELATIVE)
        given = data.profile().costs("elbo", decoder=costs.decoder_variance)
        assert np.array_equal(given.costs, costs.costs)


@pytest.mark.parametrize("name", CASES)
def test_golden_grids(name):
    case, _ = golden(name)
    for variance, decoder, costs in tables(name):
        assert costs.prior == pytest.approx(case["prior_nats"], rel=RELATIVE)
        for K, expected in case["optimal"][variance][decoder].items():
            grid = costs.best_grid(int(K))
            assert costs.cost(grid) == pytest.approx(expected["cost_nats"], rel=RELATIVE)
            # The golden file divides the nats of its density by log(2).
            assert costs.nats_per_dim(grid) == pytest.approx(
                math.log(2.0) * expected["nelbo_bits_per_dim"], rel=RELATIVE
            )
            assert grid.times[::-1].tolist() == expected["path"]


@pytest.mark.parametrize("name", CASES)
def test_golden_strides(name):
    case, _ = golden(name)
    for variance, decoder, costs in tables(name):
        for K, strides in case["strides"][variance][decoder].items():
            for stride, cost in strides.items():
                grid = fs.Grid(case["stride_paths"][K][stride][::-1])
                assert costs.cost(grid) == pytest.approx(cost, rel=RELATIVE), stride


def test_the_trap_of_divide_and_conquer():
    case, data = golden("nonmonge_trap_T20")
    costs = data.profile(case["v01"]).costs("elbo", decoder="forward")
    assert costs.variance == "learned_range"  # the model's own
    for K, wrong in case["divide_and_conquer_wrong_cost"].items():
        best = costs.cost(costs.best_grid(int(K)))
        assert best < wrong - 0.03 or K == "3"


def test_a_decoder_that_depends_on_two_steps():
    case = DATA["second_order_decoder"]
    costs = SMALL.profile().costs("elbo", decoder="respaced")
    for K, expected in case["optimal"].items():
        grid = costs.best_grid(int(K))
        assert costs.cost(grid) == pytest.approx(expected["cost_nats"], rel=RELATIVE)
        assert grid.times[::-1].tolist() == expected["path"]
    # By hand: the two steps 20 -> s and s -> 0.
    alpha_bar, noise = (level[:, 0] for level in SMALL.levels(np.arange(1.0, 21.0)))
    error, inner = SMALL.profile().error, SMALL.profile().costs("elbo").costs
    for s in range(1, 20):
        beta = 1.0 - alpha_bar[19] / alpha_bar[s - 1]
        variance = beta * noise[s - 1] / noise[19]
        last = 3.0 * math.log(2.0 * math.pi * variance) + 0.5 * error[s - 1] / variance
        assert costs.cost(fs.Grid([20, s, 0])) == pytest.approx(inner[20, s] + last, rel=1e-9)


def test_golden_analytic_dpm():
    """Analytic-DPM's J: another constant per path, and no decoder, but the same best nodes."""
    case, D = DATA["analytic_dpm_J"], len(DATA["analytic_dpm_J"]["s2"])
    found = SMALL.profile()
    np.testing.assert_allclose(found.eps_square / D, case["ms_eps"], rtol=1e-9)
    alpha_bar, noise = (level[:, 0] for level in SMALL.levels(np.arange(1.0, 21.0)))
    ratio = alpha_bar[:, None] / alpha_bar[None, :]  # alpha_{t|s}, row t
    lower = np.tri(20, k=-1, dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        J = np.log(1.0 - (1.0 - ratio) * (found.eps_square / D / noise)[:, None])
        constant = np.log(noise[:, None] / noise[None, :]) - np.log(ratio)
    table = np.where(lower, J, np.inf)
    for K, expected in case["optimal"].items():
        path, cost = fs.best_path(table, int(K) - 1)
        assert cost == pytest.approx(expected["sum_J"], rel=RELATIVE)
        assert [position + 1 for position in path] == expected["nodes"]
    ours = found.costs(variance="analytic").costs[1:, 1:]
    np.testing.assert_allclose(ours[lower], 0.5 * D * (J + constant)[lower], rtol=1e-9, atol=1e-12)


def test_reweighted_errors():
    """``(t - s) / T m_t``, the last step like any other."""
    costs = SMALL.profile().costs("mse")
    t = np.arange(21.0)
    expected = (t[:, None] - t) / 20.0 * np.append(0.0, SMALL.profile().error)[:, None]
    lower = np.tri(21, k=-1, dtype=bool)
    np.testing.assert_allclose(costs.costs[lower], expected[lower], rtol=1e-12)
    assert (costs.prior, costs.variance, costs.decoder_variance) == (0.0, None, None)
    assert costs.cost(fs.Grid([7, 3, 0])) == pytest.approx(expected[7, 3] + expected[3, 0])


# ---- grids ----


def all_tables():
    """(cost table, fewest steps of its grids)."""
    found = SMALL.profile(golden("gauss_T20")[0]["v01"])
    elbo = [
        (found.costs(variance=variance, decoder=decoder), least)
        for variance in ("small", "large", "learned_range", "analytic")
        for decoder, least in (("optimal", 1), ("respaced", 2), (np.linspace(0.01, 1.0, 20), 1))
    ]
    return [*elbo, (found.costs("mse"), 1)]


TABLES = all_tables()


@pytest.mark.parametrize(("costs", "least"), TABLES)
def test_one_run_gives_every_budget(costs, least):
    budgets = range(least, 21)
    for at_most in (False, True):
        grids = costs.best_grids(budgets, at_most=at_most)
        assert list(grids) == list(budgets)
        for K, grid in grids.items():
            assert grid == costs.best_grid(K, at_most=at_most)
            assert least <= len(grid) <= K if at_most else len(grid) == K
            assert (grid.times[0], grid.times[-1]) == (20.0, 0.0)
    exact = [costs.cost(costs.best_grid(K)) for K in budgets]
    at_most = [costs.cost(costs.best_grid(K, at_most=True)) for K in budgets]
    np.testing.assert_allclose(at_most, np.minimum.accumulate(exact), rtol=1e-12)
    assert costs.best_grids([]) == {}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(range(len(TABLES))), st.sets(st.integers(1, 19), min_size=1))
def test_no_grid_is_cheaper_than_the_best(number, inner):
    costs, _ = TABLES[number]
    grid = fs.Grid([20, *sorted(inner, reverse=True), 0])
    best = costs.cost(costs.best_grid(len(grid)))
    assert best <= costs.cost(grid) + 1e-12 * abs(best)


def test_a_single_time():
    found = fs.profile(SMALL.denoiser(), SMALL.samples(9), times=[20], bin_width=None)
    for decoder in ("optimal", "forward", "posterior", [0.5]):
        costs = found.costs("elbo", decoder=decoder)
        assert costs.best_grid(1) == fs.Grid([20, 0])
        assert costs.cost(costs.best_grid(1)) == costs.costs[1, 0]


def test_tables_are_the_callers_own():
    """What is written into a table does not change the next grid."""
    for (mine, _), (costs, _) in zip(all_tables(), TABLES, strict=True):
        mine.costs[:] = 0.0
        assert mine.best_grid(12) == costs.best_grid(12)


# ---- bits per dimension ----


def network_of(case, learned):
    toy, betas = case["toy"], np.array(case["betas"])
    alpha_bar = np.cumprod(1.0 - betas)
    weights = np.sqrt(1.0 - alpha_bar) / (alpha_bar * toy["wv"] + 1.0 - alpha_bar)

    def network(x, index):
        i = int(index[0])
        eps = x * weights[i] + toy["bias"]
        raw = torch.tanh(toy["vs"] * x + toy["vt"] * i / len(betas) - 0.2)
        return torch.cat((eps, raw), dim=1) if learned else eps

    return network


def test_openai_crosscheck():
    """improved-diffusion's terms on four respacings, with the noise of each original step."""
    case = DATA["openai_crosscheck"]
    schedule = fs.NoiseSchedule.from_betas(case["betas"])
    x0, noise = (torch.tensor(case[key], dtype=torch.float64) for key in ("x0", "noise"))
    for result in case["results"]:
        learned = result["var"] == "range"
        model = fs.Denoiser(
            network_of(case, learned),
            schedule,
            (2, 2, 2),
            variance=VARIANCES[result["var"]],
            clip=1.0 if result["clip"] else None,
        )
        grid = fs.Grid.from_indices(result["use_timesteps_0based"])
        drawn = noise[[int(t) - 1 for t in grid.times[:-1]]]
        for i in range(2):
            own = slice(i, i + 1)
            found = fs.bits_per_dim(model, x0[own], grid, noise=drawn[:, own])
            terms = [row[i] for row in result["terms_bits_per_dim_f64"]]
            np.testing.assert_allclose(found.terms[::-1], terms, rtol=RELATIVE)
            assert found.prior == pytest.approx(result["prior_bpd_f64"][i], rel=RELATIVE)
            assert found.total == pytest.approx(result["total_bpd_f64"][i], rel=RELATIVE)
