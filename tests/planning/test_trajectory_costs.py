"""Trajectory costs: how far one DDIM step strays, from inner products instead of steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import PROFILE_DRAW
from fastsample.profiling.trajectories import Trajectories
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, model_b

TIMES = [1.0, 7.0, 60.0, 200.0, 480.0, 777.0, 1000.0]
SHAPE = (2, 3)


def direct(states, estimates, alpha, sigma):
    """Squared distance of one DDIM step from t to s (arXiv:2010.02502, eq. 12), row t, column s.

    Args:
        states: `(n + 1, N, ...)` along the trajectories, the clean end first.
        estimates: `(n, N, ...)` of x0, without time 0.
        alpha: `(n + 1,)`.
        sigma: `(n + 1,)`.
    """
    n = len(states)
    table = np.full((n, n), np.inf)
    for t in range(1, n):
        eps = (states[t] - alpha[t] * estimates[t - 1]) / sigma[t]
        for s in range(t):
            reached = alpha[s] * estimates[t - 1] + sigma[s] * eps
            table[t, s] = ((reached - states[s]) ** 2).sum() / states.shape[1]
    return table


def inner_products(states, estimates):
    flat, hats = states.reshape(len(states), -1), estimates.reshape(len(estimates), -1)
    return Trajectories(states.shape[1], flat @ flat.T, hats @ flat.T, hats @ hats.T)


@pytest.mark.parametrize("count", [1, 5])
def test_inner_products_hold_every_step(count):
    rng = np.random.default_rng(count)
    states, estimates = rng.normal(size=(8, count, 4)), rng.normal(size=(7, count, 4))
    levels = LINEAR.levels([0.0, *TIMES])
    found = inner_products(states, estimates).squared_errors(*levels)
    np.testing.assert_allclose(found, direct(states, estimates, *levels), rtol=1e-11)


def test_trajectories_add():
    rng = np.random.default_rng(0)
    states, estimates = rng.normal(size=(8, 5, 4)), rng.normal(size=(7, 5, 4))
    levels = LINEAR.levels([0.0, *TIMES])
    parts = [inner_products(states[:, i], estimates[:, i]) for i in (slice(2), slice(2, 5))]
    both = Trajectories.empty(7) + parts[0] + parts[1]
    assert both.count == 5
    found = both.squared_errors(*levels)
    np.testing.assert_allclose(found, direct(states, estimates, *levels), rtol=1e-11)


def measured(network=None, count=6, times=TIMES, **options):
    """(profile, the spy on its network), one batch."""
    spy = Spy(network or model_b())
    model = denoiser(spy, *SHAPE, clip=1.0)
    x0 = torch.rand(9, *SHAPE) * 2.0 - 1.0
    return fs.profile(model, x0, times=times, trajectories=count, **options), spy


@pytest.mark.parametrize("clip", ["auto", None, 0.5])
def test_a_profile_runs_ddim_and_compares_with_it(clip):
    found, spy = measured(clip=clip)
    low, high = found.settings.clip
    n = len(TIMES)
    seen = torch.stack(spy.inputs[n:][::-1]).double()  # after one call per time for the errors
    assert seen.shape == (n, 6, *SHAPE)
    alpha, sigma = LINEAR.levels([0.0, *TIMES])
    outputs = torch.stack([model_b()(x, t) for x, t in zip(seen, spy.told[n:][::-1], strict=True)])
    signal, noise = (torch.from_numpy(v[1:]).reshape(-1, 1, 1, 1) for v in (alpha, sigma))
    estimates = ((seen - noise * outputs) / signal).clamp(low, high)
    states = torch.cat((estimates[:1], seen))  # the last step lands on the estimate
    expected = np.sqrt(direct(states.numpy(), estimates.numpy(), alpha, sigma) / 6)
    costs = found.costs("trajectory")
    lower = np.tri(n + 1, k=-1, dtype=bool)
    # The trajectory is float32: 6e-8 of vectors of length 1, and of 200 where nothing is clipped.
    size = float(estimates.abs().max())
    distances = np.sqrt(costs.costs)
    np.testing.assert_allclose(distances[lower], expected[lower], atol=1e-6 * max(size, 1.0))
    assert np.all(np.diag(distances, -1) < 1e-6 * max(size, 1.0))  # its own steps
    started = (states - states[-1:]).square().mean((1, 2, 3)).sqrt().numpy()
    np.testing.assert_allclose(np.sqrt(costs.start[1:]), started[1:], atol=1e-6 * max(size, 1.0))
    assert costs.start[0] == np.inf
    assert expected[-1, 1] > 1e-3 * size  # while longer ones do stray


def test_the_trajectory_is_that_of_the_sampler():
    found, _ = measured(seed=3, sample_index=2)
    grid = fs.Grid([*TIMES[::-1], 0.0])
    start = ops.noise(torch.tensor([3]), torch.arange(2, 6), SHAPE, draw=PROFILE_DRAW + 1)
    model = denoiser(model_b(), *SHAPE, clip=1.0)
    x = fs.sample(model, grid, method="ddim", start=start)
    assert found.trajectories.count == 4  # samples 2 to 5 of the first 6
    assert found.trajectories.states[0, 0] == pytest.approx(float(x.double().square().sum()))
    noise = float(start.double().square().sum())
    assert found.trajectories.states[-1, -1] == pytest.approx(noise)


def test_nothing_depends_on_how_many_are_held_at_once(monkeypatch):
    whole, calls = measured()
    monkeypatch.setattr(
        "fastsample.profiling.measurement._MAX_TRAJECTORY_ELEMENTS", 2 * 6 * len(TIMES) * 4
    )
    monkeypatch.setattr(
        "fastsample.profiling.measurement._MAX_FLOAT64_ELEMENTS", 5 * (len(TIMES) + 1)
    )
    parts, more = measured()
    assert len(more) == len(calls) + len(TIMES)  # four trajectories, then two
    for name, array in whole.trajectories.to_arrays().items():
        found = parts.trajectories.to_arrays()[name]
        np.testing.assert_allclose(found, array, rtol=1e-12, atol=1e-12 * np.abs(array).max())


def test_best_grids_follow_the_trajectory():
    found, _ = measured(times=np.arange(10.0, 1001.0, 30.0))
    costs = found.costs("trajectory")
    best = {K: costs.cost(grid) for K, grid in costs.best_grids(range(1, 35)).items()}
    assert best[34] < 1e-10 < best[5]
    assert sorted(best.values(), reverse=True) == [best[K] for K in range(1, 35)]
    assert (costs.prior, costs.variance, costs.decoder_variance) == (0.0, None, None)
    # Not bound to the last time: there is no prior.
    assert costs.cost(fs.Grid([700, 10, 0])) > 0.0


def test_best_grids_may_start_anywhere():
    found, _ = measured()
    costs = found.costs("trajectory")
    for K in (1, 2, 3, 7):
        every = [
            fs.Grid([*(TIMES[i] for i in reversed(chosen)), 0.0])
            for chosen in itertools.combinations(range(len(TIMES)), K)
        ]
        assert costs.cost(costs.best_grid(K)) == min(costs.cost(grid) for grid in every)


def test_a_model_that_is_always_right_needs_one_step():
    """Then every estimate is the same, and DDIM goes straight."""
    point = torch.tensor([[0.5, -0.25, 0.0], [1.0, -1.0, 0.75]])
    model = denoiser(lambda x, t: point.expand_as(x), *SHAPE, prediction="x0")
    x0 = torch.zeros(4, *SHAPE)
    costs = fs.profile(model, x0, times=TIMES).costs("trajectory").costs
    assert np.all(costs[np.tri(8, k=-1, dtype=bool)] < 1e-6)


def test_trajectories_of_a_learned_variance_use_the_first_half():
    def wide(x, t):
        return torch.cat((halve(x, t), torch.full_like(x, 9.0)), dim=1)

    x0 = torch.zeros(4, *SHAPE)
    one, two = (
        fs.profile(denoiser(network, *SHAPE, variance=variance), x0, times=TIMES).trajectories
        for network, variance in ((halve, "small"), (wide, "learned_range"))
    )
    for name, array in one.to_arrays().items():
        assert np.array_equal(two.to_arrays()[name], array), name
