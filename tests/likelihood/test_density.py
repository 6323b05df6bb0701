"""The bound of data without bins: a density in nats, against plain loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import BITS_PER_DIM_DRAW
from tests.helpers.diagonal import SMALL, Diagonal
from tests.helpers.latents import SCHEDULE, Latents

LATENTS = Latents(shape=(2, 3))
GRID = fs.Grid([1000, 600, 150, 20, 0])


def test_terms_are_those_of_a_plain_loop():
    x0 = LATENTS.samples(9)
    found = fs.bits_per_dim(LATENTS.denoiser(), x0, GRID, bin_width=None, batch_size=4)
    wide, total = x0.double(), torch.zeros(9, dtype=torch.float64)
    for k, (t, s) in enumerate(zip(GRID.times, GRID.times[1:], strict=False)):
        eps = ops.noise(
            torch.tensor([0]),
            torch.arange(9),
            LATENTS.shape,
            draw=BITS_PER_DIM_DRAW + k,
            dtype=torch.float64,
        )
        (alpha, sigma), (alpha_s, sigma_s) = (map(float, SCHEDULE.levels(time)) for time in (t, s))
        guess = LATENTS.estimate(alpha * wide + sigma * eps, alpha, sigma)
        beta = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
        if s > 0:
            weight, variance = alpha_s * beta / sigma**2, beta * sigma_s**2 / sigma**2
            means = (Normal(weight * mean, math.sqrt(variance)) for mean in (wide, guess))
            nats = kl_divergence(*means)
            last = variance  # The decoder has the variance of the step before it.
        else:
            nats = -Normal(guess, math.sqrt(last)).log_prob(wide)
        total += nats.flatten(1).mean(1)
        # The network sees float32.
        assert found.terms[k] == pytest.approx(float(nats.mean()), rel=1e-4)
    alpha, sigma = map(float, SCHEDULE.levels(1000.0))
    prior = kl_divergence(Normal(alpha * wide, sigma), Normal(0.0, 1.0)).flatten(1).mean(1)
    total += prior
    assert found.prior == pytest.approx(float(prior.mean()), rel=1e-9)
    assert found.total == pytest.approx(float(total.mean()), rel=1e-4)
    error = float(total.std(correction=1) / 3.0)
    assert found.standard_error == pytest.approx(error, rel=1e-3)
    assert found.unit == "nats"
    assert f"{found.standard_error:.4f} nats/dim: prior" in repr(found)
    assert found.kl + found.decoder + found.prior == pytest.approx(found.total)


def test_the_planned_bound_is_the_measured_one():
    """The closed form of infinitely many samples, and 4000 of them."""
    grid = fs.Grid([20, 12, 5, 1, 0])
    table = SMALL.profile().costs("elbo", decoder="respaced")
    found = fs.bits_per_dim(SMALL.denoiser(), SMALL.samples(4000), grid, bin_width=None)
    assert abs(found.total - table.nats_per_dim(grid)) < 5.0 * found.standard_error


@pytest.mark.parametrize("deviation", [0.01, 1.0, 5.0])
def test_the_bound_of_gaussian_data_is_their_entropy(deviation):
    """With the best variances every step is exact. Narrow data have a negative entropy."""
    data = Diagonal(fs.NoiseSchedule.linear(1000), [deviation**2] * 4)
    table = data.profile().costs("elbo", variance="analytic")
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * deviation**2)
    alpha, sigma = (float(level) for level in data.schedule.levels(1000.0))
    spread = (alpha * deviation) ** 2 + sigma**2  # of x_T, which the model takes to be 1
    gap = 0.5 * (spread - 1.0 - math.log(spread))
    for steps in (1, 3, 1000):
        bound = table.nats_per_dim(table.best_grid(steps))
        assert bound == pytest.approx(entropy + gap, abs=1e-9)
    assert (entropy < 0.0) == (deviation == 0.01)


@pytest.mark.parametrize("deviation", [0.01, 1.0, 5.0])
def test_the_measured_bound_is_above_the_entropy(deviation):
    data = Diagonal(fs.NoiseSchedule.linear(1000), [deviation**2] * 4)
    table = data.profile().costs("elbo")
    grid = table.best_grid(200)
    variance = float(table.decoder_variance[int(grid.times[-2]) - 1])
    found = fs.bits_per_dim(
        data.denoiser(), data.samples(400), grid, bin_width=None, decoder_variance=variance
    )
    assert abs(found.total - table.nats_per_dim(grid)) < 5.0 * found.standard_error
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * deviation**2)
    assert entropy < table.nats_per_dim(grid) < entropy + 0.05


@pytest.mark.parametrize(
    "schedule",
    [
        fs.NoiseSchedule.exploding(80.0),
        fs.NoiseSchedule.exploding(5.0),
        fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0),
        fs.NoiseSchedule.from_functions(alpha=lambda t: 1.0, sigma=lambda t: 0.002 * 4e4**t),
        fs.NoiseSchedule.vdm(-14.0, 8.0),
        fs.NoiseSchedule.flow(),
    ],
    ids=["80", "5", "functions", "geometric", "vdm", "flow"],
)
def test_the_bound_does_not_depend_on_the_scale_of_the_process(schedule):
    """Normal data of deviation 0.5, whose best x0 is exact; x_T is 0.25 alpha^2 + sigma^2 wide."""
    std, steps = 0.5, 400
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * std**2)

    def network(x, t):
        alpha, sigma = (torch.as_tensor(level)[:, None] for level in schedule.levels(t.numpy()))
        return (x * alpha * std**2 / (alpha**2 * std**2 + sigma**2)).to(x.dtype)

    denoiser = fs.Denoiser(network, schedule, (4,), prediction="x0", time=lambda t: 1.0 * t)
    x0 = std * torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    start, (alpha, sigma) = schedule.start_scale(schedule.T), schedule.levels(schedule.T)
    energy = float(x0.double().square().mean())
    # KL of N(alpha x0, sigma^2) from the noise that sampling starts from, N(0, start^2).
    want = 0.5 * ((alpha**2 * energy + sigma**2) / start**2 - 1) - math.log(sigma / start)
    high, low = float(schedule.log_snr(schedule.T)), 6.0
    if not math.isfinite(high):
        high = -12.0
    inner = schedule.time_at_log_snr(np.linspace(high, low, steps))
    inner = inner if inner[0] < schedule.T else inner[1:]
    grid = fs.Grid([schedule.T, *inner, 0.0])
    alpha_last, sigma_last = (float(level) for level in schedule.levels(grid.times[-2]))
    decoder = 1 / (1 / std**2 + (alpha_last / sigma_last) ** 2)
    found = fs.bits_per_dim(denoiser, x0, grid, bin_width=None, decoder_variance=decoder)
    assert found.prior == pytest.approx(want, rel=1e-6, abs=1e-9)
    # 400 steps of about 0.05 in log SNR lose less than 0.02 nats, and the mean of 2400 numbers has
    # a standard error of 0.015.
    assert abs(found.total - entropy) < 0.02 + 5.0 * found.standard_error
    profile = fs.profile(denoiser, x0, bin_width=None, times=np.sort(grid.times[:-1]))
    table = profile.costs("elbo")
    assert table.prior / 4 == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert abs(table.nats_per_dim(table.best_grid(steps)) - entropy) < 0.1


def test_small_bins_are_the_density_times_their_width():
    """A probability of narrow bins in [-1, 1], whose decoder is wide, is a density times 2/255."""
    x0 = (torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 240 + 8).round()
    x0 = x0 / 127.5 - 1.0  # without the two ends, whose bins are infinite
    model = Diagonal(fs.NoiseSchedule.linear(1000), [0.3] * 4).denoiser()
    options = {"grid": "quadratic", "decoder_variance": 0.01}
    bits = fs.bits_per_dim(model, x0, 50, **options)
    nats = fs.bits_per_dim(model, x0, 50, bin_width=None, **options)
    np.testing.assert_allclose(nats.terms[:-1], bits.terms[:-1] * math.log(2.0), rtol=1e-12)
    # Twelve bins in a deviation: the approximate distribution function is 2e-4 off.
    assert nats.decoder - math.log(2 / 255) == pytest.approx(bits.decoder * math.log(2.0), abs=2e-2)


def test_latents_are_refused_where_bins_were_asked_for():
    with pytest.raises(
        ValueError,
        match=r"^bits_per_dim: data must be in \[-1, 1\], where the decoder's bins lie, got .*; "
        "latents and other data without bins need bin_width=None, for a bound in nats$",
    ):
        fs.bits_per_dim(LATENTS.denoiser(), LATENTS.samples(3), 4)
    x0 = torch.full((2, *LATENTS.shape), math.nan)
    with pytest.raises(ValueError, match=r"^bits_per_dim: data must be finite, got NaN or inf"):
        fs.bits_per_dim(LATENTS.denoiser(), x0, 4, bin_width=None)
