"""Shortcut sampling: jump to x0 and noise it afresh, which halves the variance of Gaussian data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.plans.rows import COLUMNS, NEUTRAL
from fastsample.samplers.shortcut import shortcut
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition
from tests.helpers import oracles
from tests.helpers.cases import PREDICTIONS, SCHEDULES, turns
from tests.helpers.networks import Gaussian
from tests.helpers.refusals import check_refusal, refusals

LINEAR, VDM, FLOW = NoiseSchedule.linear(), NoiseSchedule.vdm(), NoiseSchedule.flow()
TEN = grids.uniform(1000, 10)

schedules = pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vdm", "flow"])


@schedules
def test_rows_are_equation_8(name):
    schedule = SCHEDULES[name]
    for grid, prediction, clip in turns(schedule):
        plan = shortcut(schedule, grid, clip=clip, prediction=prediction)

        def loop(x, denoise, noise, plan=plan):
            return oracles.shortcut_sampling(x, plan.alphas, plan.sigmas, denoise, noise)

        oracles.assert_plan_is(plan, loop, clip)


@schedules
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_row_forgets_x(name, prediction):
    schedule = SCHEDULES[name]
    grid = fs.Grid(schedule.T * np.array([0.9, 0.5, 0.2, 0.01, 0.0]))
    plan = shortcut(schedule, grid, prediction=prediction)
    alpha, sigma = schedule.levels(grid.times[1:])
    expected = {"a": 0.0, "b": alpha, "d": sigma}
    for column in COLUMNS[4:]:
        want = expected.get(column, NEUTRAL[column])
        np.testing.assert_array_equal(plan.column(column), np.broadcast_to(want, 4))
    assert (plan.method, plan.check, plan.needs_history) == ("shortcut", "all", 0)
    assert plan.is_stochastic
    assert not shortcut(schedule, fs.Grid([schedule.T / 2, 0])).is_stochastic


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "vdm"])
def test_it_is_ddim_at_the_largest_noise(name):
    """eta = sqrt((1 - abar_t) / beta_{t|s}), beyond the [0, 1] that DDIM and FastDPM allow."""
    schedule = SCHEDULES[name]
    for grid in (grids.karras(schedule, 12), grids.log_snr(schedule, 5)):
        plan = shortcut(schedule, grid)
        a, s = plan.alphas, plan.sigmas
        pair = transition(a[1:], s[1:], a[:-1], s[:-1])
        etas = s[:-1] / np.sqrt(pair.variance)
        assert np.all(etas >= 1.0)
        assert np.all(etas[1:-1] > 1.0)
        np.testing.assert_allclose(etas * np.sqrt(pair.posterior_variance), s[1:], rtol=1e-12)

        def loop(x, denoise, noise, a=a, s=s, etas=etas):
            return oracles.ddim_eq12(x, a, s, denoise, etas, noise)

        def eps_is_left_out(x, denoise, noise, a=a, s=s):
            return oracles.shortcut_sampling(x, a, s, denoise, noise)

        oracles.assert_plan_is(plan, eps_is_left_out)
        # Its sqrt(1 - abar_s - d^2) is the root of rounding, 1e-8, instead of 0.
        oracles.assert_plan_is(plan, loop, tolerance=1e-6)


def shares(schedule, times, deviation):
    """SNR c^2 / (1 + SNR c^2) of each time: the share of E[x0 | x] in a Gaussian's variance."""
    alpha, sigma = schedule.levels(times)
    return (alpha * deviation) ** 2 / ((alpha * deviation) ** 2 + sigma**2)


@pytest.mark.parametrize("schedule", [LINEAR, VDM, FLOW], ids=["linear", "vdm", "flow"])
@pytest.mark.parametrize("deviation", [0.4, 1.0])
def test_variance_shrinks_as_the_recursion_says(schedule, deviation):
    """x0 = w / alpha x gives u' = w^2 u + w (1 - w), u the variance of x0 over the data's."""

    def network(x, t):
        alpha, sigma = schedule.levels(t)
        return alpha * deviation**2 / ((alpha * deviation) ** 2 + sigma**2) * x

    kept = []
    for K in (1, 2, 3, 5, 11, 40, 300):
        grid = grids.uniform(schedule.num_steps or schedule.T, K)
        plan = shortcut(schedule, grid, prediction="x0")
        weights = np.eye(K + 1)  # x as a combination of x_T and the draws
        weights[0] *= math.hypot(plan.alphas[0] * deviation, plan.sigmas[0])
        got = oracles.states(plan, network, weights[0], weights[1:])[-1]

        w = shares(schedule, grid.times[:-1], deviation)
        # Unrolled: what each draw adds, through all the later shrinking; x_T itself counts as 1.
        later = np.append(np.cumprod(w[::-1] ** 2)[::-1], 1.0)
        closed = later[0] + np.sum(w * (1.0 - w) * later[1:])
        np.testing.assert_allclose(got @ got, closed * deviation**2, rtol=1e-12)
        kept.append(closed)
    assert np.all(np.diff(kept) > 0)  # the more concentrated the fewer the steps
    assert kept[0] < 0.01
    assert np.all(np.array(kept) < 0.5)
    assert kept[-1] > 0.47  # and half of it is the limit, w / (1 + w) at w = 1


def test_samples_have_that_variance():
    """Through `sample`, on random times: fresh noise in every row."""
    deviation, seed = 0.6, 5
    model = Gaussian(LINEAR, 0.0, deviation).denoiser(4)
    options = {"method": "shortcut", "grid": "random", "grid_seed": seed, "seed": seed}
    got = fs.sample(model, 11, num_samples=5000, **options).double()
    grid = grids.random(1000, 11, seed)
    w = shares(LINEAR, grid.times[:-1], deviation)
    u = 1.0
    for share in w:
        u = share**2 * u + share * (1.0 - share)
    n = got.numel()
    assert float(got.mean()) == pytest.approx(0.0, abs=5 * deviation / math.sqrt(n))
    # 5 standard errors; x_T ~ N(0, 1) is not quite the forward process's, at SNR 4e-5.
    assert float(got.var()) == pytest.approx(u * deviation**2, rel=5 * math.sqrt(2 / n) + 1e-4)
    again, other = (
        fs.sample(model, 11, num_samples=3, **{**options, "seed": s}) for s in (seed, seed + 1)
    )
    plan = shortcut(LINEAR, grid)
    assert torch.equal(again, fs.sample(model, plan, num_samples=3, seed=seed))
    assert not torch.equal(again, other)


def test_random_times():
    plan = shortcut(LINEAR, grids.random(1000, 11, seed=3))
    assert len(plan) == 11  # the paper's K = 10
    assert plan.times[0] == 1000
    assert plan == shortcut(LINEAR, grids.random(1000, 11, seed=3))
    assert plan != shortcut(LINEAR, grids.random(1000, 11, seed=4))


def refuse(*arguments, **knobs):
    """One call with one bad argument."""
    return lambda: shortcut(*(arguments or (LINEAR, TEN)), **knobs)


BAD = {
    "schedule": (refuse("vdm", TEN), TypeError, "^shortcut: schedule must be a NoiseSchedule, got"),
    "grid": (refuse(LINEAR, TEN.times), TypeError, r"^shortcut: grid must be a Grid, got array\("),
    "above T": (refuse(VDM, TEN), ValueError, "^shortcut: grid must start at or below T = 1, got"),
    "no signal": (
        refuse(FLOW, grids.uniform(1.0, 5)),
        ValueError,
        r"shortcut: prediction must determine x0 .*, got 'epsilon' where alpha = 0 \(row 0\)",
    ),
    "prediction": (refuse(prediction="z"), ValueError, "shortcut: prediction must be one of .*'z'"),
    "clip NaN": (refuse(clip=math.nan), ValueError, "shortcut: clip must be finite, got nan"),
    "clip text": (refuse(clip="1"), TypeError, "shortcut: clip must be a real number, got '1'"),
}


@refusals(shortcut=BAD)
def test_refused(call, error, match):
    check_refusal(call, error, match)
