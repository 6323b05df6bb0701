"""Cost tables of processes with a scale of their own: a variance's name means the process's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.schedules.transition import transition
from tests.helpers.networks import denoiser

TIMES = np.array([0.1, 0.25, 0.5, 0.8, 1.0])
FLOW = fs.NoiseSchedule.flow()
SHAPE = (2, 3)


def direct(schedule, times, error, dims, v):
    """KL of every step, term by term, with log variances between the posterior's and the forward's.

    Args:
        schedule: any.
        times: ascending.
        error: ``E||x0 - x0hat||^2`` at each.
        dims: D.
        v: share of the forward variance, one number.
    """
    table = np.full((len(times), len(times)), np.inf)
    for t in range(1, len(times)):
        for s in range(t):
            (alpha_s, alpha_t), (sigma_s, sigma_t) = schedule.levels(times[[s, t]])
            pair = transition(alpha_s, sigma_s, alpha_t, sigma_t)
            small, large = float(pair.posterior_variance), float(pair.variance)
            used = large**v * small ** (1 - v)
            weight = float(alpha_s * pair.variance / sigma_t**2)
            difference = weight**2 * error[t]
            table[t, s] = 0.5 * (
                dims * (np.log(used / small) - 1 + small / used) + difference / used
            )
    return table


@pytest.mark.parametrize("schedule", [FLOW, fs.NoiseSchedule.vdm()], ids=["flow", "vdm"])
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
def test_steps_are_the_direct_divergences(schedule, variance):
    def network(x, t):
        out = 0.5 * x
        return torch.cat([out, torch.full_like(x, 0.4)], dim=1)  # v = 0.7

    model = fs.Denoiser(
        network, schedule, SHAPE, prediction="v", variance="learned_range", time="fraction"
    )
    x0 = torch.rand(7, *SHAPE) * 2 - 1
    found = fs.profile(model, x0, times=TIMES, bin_width=None, trajectories=0, nodes=32)
    table = found.costs(variance=variance).costs[1:, 1:]
    share = {"small": 0.0, "large": 1.0, "learned_range": 0.7}[variance]
    expected = direct(schedule, TIMES, found.error, found.dims, share)
    lower = np.tri(len(TIMES), k=-1, dtype=bool)
    # v is float32: 0.7 to 6e-8, times a range of up to 15.
    np.testing.assert_allclose(table[lower], expected[lower], rtol=2e-5)
    assert np.all(np.isposinf(table[~lower]))


def test_bits_per_dim_plans_on_that_table():
    model = denoiser(lambda x, t: 0.5 * x, *SHAPE, schedule=FLOW, prediction="v", time="fraction")
    x0 = (torch.rand(40, *SHAPE) * 255).round() / 127.5 - 1
    found = fs.profile(model, x0, times=TIMES, trajectories=0)
    grid = fs.Grid([1.0, 0.5, 0.25, 0.0])
    for variance in ("small", "large"):
        bound = fs.bits_per_dim(model, x0, grid, variance=variance)
        costs = found.costs(variance=variance, decoder="respaced")
        # Other noise at every step there.
        assert costs.bits_per_dim(grid) == pytest.approx(bound.total, abs=6 * 0.05)


def test_the_forward_decoder_is_the_process_s_own():
    model = denoiser(lambda x, t: 0.5 * x, *SHAPE, schedule=FLOW, prediction="v", time="fraction")
    x0 = torch.rand(5, *SHAPE)
    found = fs.profile(model, x0, times=TIMES, bin_width=None, trajectories=0)
    np.testing.assert_allclose(found.costs("elbo", decoder="forward").decoder_variance, TIMES**2)


def test_saturated_noise_can_be_planned():
    """1 - alpha_bar is 1 to the last bit at several times; alpha_bar still differs."""
    schedule = fs.NoiseSchedule.linear(200, 1e-4, 0.9)
    model = denoiser(lambda x, t: 0.5 * x, *SHAPE, schedule=schedule, prediction="v")
    found = fs.profile(model, torch.rand(4, *SHAPE), bin_width=None, trajectories=2)
    for objective in ("mse", "trajectory"):
        assert len(found.costs(objective).best_grid(5)) == 5
    assert np.isfinite(found.costs("elbo").cost(found.costs("elbo").best_grid(5)))


@pytest.mark.parametrize("function", [fs.profile, fs.bits_per_dim])
@pytest.mark.filterwarnings("ignore:.* data must be on the decoder's bins:UserWarning")
def test_conditions_are_as_many_as_the_samples(function):
    def network(x, t, y):
        return 0.5 * x + y[:, None, None]

    model = denoiser(network, *SHAPE)
    x0 = torch.zeros(10, *SHAPE)
    options = {"trajectories": 0} if function is fs.profile else {}
    steps = {"times": [1, 500, 1000]} if function is fs.profile else {"steps": [1000, 500, 1, 0]}
    for data in (x0, iter(x0.split(4))):
        with pytest.raises(ValueError, match=r"one entry per sample \(10\), got 17"):
            function(model, data, cond={"y": torch.zeros(17)}, **steps, **options)
    with pytest.raises(TypeError, match="cond must be a mapping of keyword arguments, got list"):
        function(model, x0, cond=[1], **steps, **options)
