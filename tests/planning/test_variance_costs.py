"""Costs under learned and analytic variances, against formulas that know every dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.plans.rows import COLUMNS
from fastsample.schedules.transition import transition
from tests.helpers.diagonal import SMALL, Diagonal, excess, golden
from tests.helpers.networks import LINEAR, Spy
from tests.helpers.profile_cases import TIMES

D = 24
LARGE = Diagonal(LINEAR, np.geomspace(1e-3, 1.0, D))
GRID = fs.Grid([20, 13, 8, 5, 2, 1, 0])


def pair(schedule, t, s):
    """(beta_{t|s}, beta-tilde_{t,s}, SNR_s - SNR_t) for s >= 1."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.levels(t), schedule.levels(s)
    step = transition(alpha_s, sigma_s, alpha_t, sigma_t)
    drop = step.variance * alpha_s**2 / (sigma_s * sigma_t) ** 2
    return step.variance, step.posterior_variance, drop


# ---- learned variances ----


def direct(data, t, v):
    """`(t - 1,)` costs of the steps from t to s = 1..t-1, a term per dimension."""
    s = np.arange(1.0, t)
    beta, small, drop = (np.asarray(values)[:, None] for values in pair(data.schedule, t, s))
    a = np.log1p((beta - small) / small)
    errors = data.errors(np.array([float(t)]))
    return 0.5 * (excess(a * v) + drop * errors * np.exp(-a * v)).sum(1)


@pytest.mark.parametrize(("nodes", "tolerance"), [(16, 1e-6), (24, 1e-12)])
def test_a_thousand_times_from_a_few_nodes(nodes, tolerance):
    v = np.random.default_rng(0).random((1000, D))
    table = LARGE.profile(v, nodes).costs("elbo").costs
    for t in (2, 3, 4, 10, 57, 200, 555, 999, 1000):
        expected = direct(LARGE, t, v[t - 1])
        np.testing.assert_allclose(table[t, 1:t], expected, rtol=tolerance, err_msg=f"t = {t}")


@pytest.mark.parametrize(("v", "variance"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_the_range_are_the_fixed_variances(v, variance):
    found = LARGE.profile(np.full((1000, D), v))
    lower = np.tri(1001, k=-1, dtype=bool)
    learned, fixed = (found.costs("elbo", variance=name).costs[lower] for name in (None, variance))
    np.testing.assert_allclose(learned, fixed, rtol=1e-9)


def test_wider_ranges_want_more_nodes():
    """Raw outputs are not clipped: v from -1 to 2, as `chebyshev_nodes` promises for 32."""
    v = np.random.default_rng(1).uniform(-1.0, 2.0, (1000, D))
    table = LARGE.profile(v, 32).costs("elbo").costs
    for t in (2, 30, 1000):
        np.testing.assert_allclose(table[t, 1:t], direct(LARGE, t, v[t - 1]), rtol=1e-9)


def test_a_measured_profile():
    """The network's own outputs, put into the formula step by step."""

    def network(x, t):
        return torch.cat((0.5 * x, torch.tanh(x)), dim=1)

    spy, kind = Spy(network), "learned_range"
    model = fs.Denoiser(spy, LINEAR, (3,), variance=kind, clip=1.0)
    x0 = torch.rand(5, 3) * 2.0 - 1.0
    found = fs.profile(model, x0, times=TIMES, trajectories=0, nodes=24)
    table = found.costs("elbo").costs
    for i, t in enumerate(TIMES):
        x = spy.inputs[i].double().numpy()
        alpha, sigma = LINEAR.levels(t)
        x0hat = np.clip((x - sigma * 0.5 * x) / alpha, -1.0, 1.0)
        v = (np.tanh(x) + 1.0) / 2.0
        for j, s in enumerate(TIMES[:i]):
            beta, small, drop = pair(LINEAR, t, s)
            a = np.log(beta / small)
            terms = a * v - 1.0 + np.exp(-a * v) + drop * (x0.numpy() - x0hat) ** 2 * np.exp(-a * v)
            # The network's float32 outputs.
            assert table[i + 1, j + 1] == pytest.approx(0.5 * terms.sum() / 5, rel=1e-5)


# ---- analytic variances ----


def any_variance(data, t, s, variance):
    """The cost of a step whose reverse variance is one number."""
    _, small, drop = pair(data.schedule, t, s)
    D, error = len(data.s2), float(data.errors(np.array([float(t)])).sum())
    spread = np.log(variance / small) - 1.0 + small / variance
    return 0.5 * (D * spread + drop * error * small / variance)


@pytest.mark.parametrize(("t", "s"), [(2, 1), (5, 3), (10, 1), (20, 1), (20, 19), (13, 6)])
def test_analytic_is_the_least_of_all_variances(t, s):
    found = SMALL.profile()
    best = found.costs(variance="analytic").costs[t, s]
    (variance, _) = found.analytic_variance(fs.Grid([t, s, 0]))[:2]
    assert any_variance(SMALL, t, s, variance) == pytest.approx(best, rel=1e-10)
    others = variance * np.exp(np.linspace(-3.0, 3.0, 401))
    costs = any_variance(SMALL, t, s, others)
    assert np.all(costs >= best * (1.0 - 1e-12))
    assert abs(np.argmin(costs) - 200) <= 1
    for name in ("small", "large"):
        assert best <= found.costs(variance=name).costs[t, s]


def test_the_papers_own_estimate():
    """Bao et al. 2022, theorem 1 for DDPM: beta / alpha (1 - beta Gamma), Gamma from epsilon."""
    found = SMALL.profile()
    t, s = GRID.times[:-2], GRID.times[1:-1]
    beta, _, _ = pair(SMALL.schedule, t, s)
    alpha_bar, noise = (level[:, 0] for level in SMALL.levels(t))
    gamma = SMALL.eps_squares(t).mean(1) / noise
    ratio = alpha_bar / SMALL.levels(s)[0][:, 0]
    expected = np.append(beta / ratio * (1.0 - beta * gamma), 0.0)
    for estimate in ("error", "eps"):  # alike for a Bayes-optimal network
        variance = found.analytic_variance(GRID, estimate=estimate)
        np.testing.assert_allclose(variance, expected, rtol=1e-9)


def test_the_two_estimates_of_a_measured_network():
    """Within five standard errors, of the part that is not known beforehand."""
    found = fs.profile(SMALL.denoiser(), SMALL.samples(4000), bin_width=None, trajectories=0)
    exact, t = SMALL.profile().analytic_variance(GRID)[:-1], GRID.times[:-2]
    _, small, _ = pair(SMALL.schedule, t, GRID.times[1:-1])
    errors, eps = SMALL.errors(t), SMALL.eps_squares(t)
    for estimate, squares, known in (
        ("error", errors, errors.sum(1)),
        ("eps", eps, 6.0 - eps.sum(1)),  # the error is what epsilon lacks
    ):
        relative = np.sqrt(2.0 * (squares**2).sum(1) / 4000) / known
        variance = found.analytic_variance(GRID, estimate=estimate)
        assert variance[-1] == 0.0
        assert np.all(np.abs(variance[:-1] - exact) < 5.0 * relative * (exact - small))


def test_analytic_variance_samples_isotropic_data_exactly():
    """There the reverse step is a Gaussian of one variance: no step loses any."""
    data = Diagonal(SMALL.schedule, [0.3, 0.3])
    found = data.profile()
    plan = fs.ancestral(data.schedule, GRID, variance=found.analytic_variance(GRID))

    def levels(t):
        alpha, sigma = data.schedule.levels(t)
        return float(alpha**2), float(sigma**2)

    alpha_bar, noise = levels(GRID.times[0])
    current = alpha_bar * 0.3 + noise
    for k, (t, s) in enumerate(zip(GRID.times[:-2], GRID.times[1:-1], strict=True)):
        alpha_bar, noise = levels(t)
        gain = np.sqrt(alpha_bar) * 0.3 / (alpha_bar * 0.3 + noise)  # x0hat = gain x
        row = dict(zip(COLUMNS, plan.rows[k], strict=True))
        current = (row["a"] + row["b"] * gain) ** 2 * current + row["d"] ** 2
        alpha_bar, noise = levels(s)
        assert current == pytest.approx(alpha_bar * 0.3 + noise, rel=1e-12)
    x = fs.sample(data.denoiser(), plan, num_samples=8, seed=0)
    again = fs.sample(
        data.denoiser(),
        GRID.times,
        method="ancestral",
        variance=found.analytic_variance(GRID),
        num_samples=8,
        seed=0,
    )
    assert torch.equal(x, again)


def test_a_learned_profile_has_every_variance():
    """The statistics hold all four, whatever the model's own is."""
    found = SMALL.profile(golden("gauss_T20")[0]["v01"])
    plain = SMALL.profile()
    for variance in ("small", "large", "analytic"):
        assert np.array_equal(
            found.costs(variance=variance).costs, plain.costs(variance=variance).costs
        )
    assert found.costs("elbo").variance == "learned_range"
    assert plain.costs("elbo").variance == "small"
