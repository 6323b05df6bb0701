"""The last step of cost tables: decoders of binned data, and the bound of `bits_per_dim`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import PROFILE_DRAW
from fastsample.planning.decoder import DiscretizedDecoder, GaussianDecoder, decoder_log_scales
from fastsample.schedules.transition import transition
from tests.helpers.networks import LINEAR, denoiser, model_a2, model_b

TIMES = [1, 2, 5, 20, 60, 150, 400, 700, 1000]
COUNT, SHAPE = 30, (3, 4)
GRIDS = [[1000, 400, 60, 5, 0], [1000, 2, 1, 0], [1000, 150, 20, 0], [1000, 700, 0]]


def levels(bin_width):
    """Data on all levels of [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    count = round(2 / bin_width) + 1
    return torch.randint(0, count, (COUNT, *SHAPE), generator=generator) * bin_width - 1.0


def measured(bin_width, network=None, **options):
    model = denoiser(network or model_b(), *SHAPE, clip=1.0, **options)
    x0 = levels(bin_width).clamp(-1.0, 1.0)
    return model, x0, fs.profile(model, x0, times=TIMES, bin_width=bin_width, trajectories=0)


def bound(model, x0, grid, bin_width, **options):
    """`bits_per_dim` with a profile's noise, which is one draw for all times."""
    noise = ops.noise(torch.tensor([0]), torch.arange(len(x0)), SHAPE, draw=PROFILE_DRAW)
    noise = noise.expand(len(grid), -1, -1, -1)
    return fs.bits_per_dim(model, x0, grid, noise=noise, bin_width=bin_width, **options)


# ---- the same bound by two ways ----


@pytest.mark.parametrize("bin_width", [2 / 255, 1 / 8])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_bits_per_dim_of_a_grid(bin_width, variance):
    """Terms of a table, and terms of a run over that grid: the same network outputs."""
    model, x0, found = measured(bin_width, variance=variance)
    costs = found.costs("elbo", decoder="respaced")
    for times in GRIDS:
        grid = fs.Grid(times)
        expected = bound(model, x0, grid, bin_width)
        # Float32 outputs of the network; the decoder is interpolated.
        assert costs.bits_per_dim(grid) == pytest.approx(expected.total, rel=1e-6, abs=1e-3)
        prior = costs.prior / (costs.dims * math.log(2.0))
        assert prior == pytest.approx(expected.prior, rel=1e-6)


def test_bits_per_dim_of_a_learned_variance():
    """All terms but the decoder's, whose variance `bits_per_dim` takes from v as well."""
    model, x0, found = measured(2 / 255, model_a2(), variance="learned_range")
    costs = found.costs("elbo", decoder="respaced")
    for times in GRIDS:
        (alpha_t, alpha_s), (sigma_t, sigma_s) = found.schedule.levels(times[-3:-1])
        variance = float(transition(alpha_s, sigma_s, alpha_t, sigma_t).posterior_variance)
        expected = bound(model, x0, fs.Grid(times), 2 / 255)
        last = found.decoder().costs(np.full(len(TIMES), variance))[TIMES.index(times[-2])]
        kl = costs.bits_per_dim(fs.Grid(times)) - last / (costs.dims * math.log(2.0))
        assert kl == pytest.approx(expected.kl + expected.prior, rel=1e-6, abs=1e-6), times


@pytest.mark.parametrize("bin_width", [2 / 255, 1 / 8])
def test_decoder_of_a_chosen_variance(bin_width):
    model, x0, found = measured(bin_width)
    for variance in (1e-3, 0.02, 0.5):
        costs = found.costs("elbo", decoder=np.full(len(TIMES), variance))
        assert np.array_equal(costs.decoder_variance, np.full(len(TIMES), variance))
        for k, t in enumerate(TIMES):
            expected = bound(model, x0, fs.Grid([t, 0]), bin_width, decoder_variance=variance)
            nats = expected.decoder * costs.dims * math.log(2.0)
            # 360 elements: the floor of 1e-12 leaves kinks, which interpolation cuts.
            assert costs.costs[k + 1, 0] == pytest.approx(nats, rel=2e-3, abs=1e-3)


def test_optimal_is_the_cheapest_decoder():
    _, _, found = measured(2 / 255)
    best = found.costs("elbo").costs[1:, 0]
    variances = np.exp(2.0 * found.log_scales)
    for decoder in ("forward", "posterior", *(np.full(len(TIMES), v) for v in variances)):
        others = found.costs("elbo", decoder=decoder).costs[1:, 0]
        # Between two scales the search goes in steps of a sixteenth.
        assert np.all(best <= others + 1e-3 * np.abs(others))


def test_the_decoder_of_another_profile():
    """Chosen on one half of the data, and not again on the other."""
    model, x0, _ = measured(2 / 255)
    train, test = (
        fs.profile(model, half, times=TIMES, trajectories=0, sample_index=i * COUNT // 2)
        for i, half in enumerate(x0.chunk(2))
    )
    costs = test.costs("elbo", decoder=train.costs("elbo").decoder_variance)
    own = test.costs("elbo").costs[1:, 0]
    assert np.all(costs.costs[1:, 0] >= own * (1.0 - 1e-12))
    assert np.array_equal(costs.decoder_variance, train.costs("elbo").decoder_variance)


# ---- curves ----


def test_interpolation_is_exact_at_the_scales_and_for_cubics():
    scales = np.linspace(-6.0, 0.05, 48)
    cubic = np.polynomial.Polynomial([3.0, -1.0, 0.5, 0.2])
    curve = DiscretizedDecoder(scales, np.stack([cubic(scales), 2.0 * cubic(scales)]))
    for places in (scales, np.random.default_rng(0).uniform(-6.0, 0.05, 300)):
        variance = np.broadcast_to(np.exp(2.0 * places), (2, len(places)))
        expected = np.stack([cubic(places), 2.0 * cubic(places)])
        np.testing.assert_allclose(curve.costs(variance), expected, rtol=1e-10)
    # One variance per time, and the ends' costs outside.
    np.testing.assert_allclose(curve.costs(np.exp([-4.0, -2.0])), [cubic(-2), 2 * cubic(-1)])
    np.testing.assert_allclose(curve.costs([0.0, 9.0]), [cubic(-6.0), 2.0 * cubic(0.05)])


def test_best_variance_of_a_smooth_curve():
    scales = np.linspace(-6.0, 0.05, 48)
    minima = np.array([-5.0, -2.2, -0.3])
    curve = DiscretizedDecoder(scales, (scales - minima[:, None]) ** 2)
    # To half a step of the search.
    half = (scales[1] - scales[0]) / 16 / 2
    assert np.all(np.abs(0.5 * np.log(curve.best()) - minima) <= half * (1.0 + 1e-9))


def test_density_of_continuous_data():
    error = np.array([0.3, 2.0])
    curve = GaussianDecoder(error, 4)
    variance = np.array([[0.1, 0.2, 0.5], [1.0, 2.0, 3.0]])
    expected = 2.0 * np.log(2.0 * np.pi * variance) + 0.5 * error[:, None] / variance
    np.testing.assert_allclose(curve.costs(variance), expected, rtol=1e-14)
    np.testing.assert_allclose(curve.costs(variance[:, 0]), expected[:, 0], rtol=1e-14)
    assert np.array_equal(curve.best(), error / 4)
    assert np.all(curve.costs(error / 4)[:, None] <= expected)


def test_the_scales_reach_every_variance_that_a_decoder_may_have():
    for schedule in (LINEAR, fs.NoiseSchedule.cosine(4000)):
        times = np.arange(1.0, schedule.T + 1.0)
        alpha, sigma = schedule.levels(times)
        beta = 1.0 - (alpha[1:] / alpha[:-1]) ** 2
        posterior = beta * sigma[:-1] ** 2 / sigma[1:] ** 2
        for bin_width in (2 / 255, 1.0):
            scales = decoder_log_scales(bin_width, posterior)
            assert scales[0] <= math.log(bin_width / 8) + 1e-12
            assert scales[0] <= 0.5 * math.log(posterior.min()) + 1e-12
            assert scales[-1] > 0.0  # forward: at most 1
            np.testing.assert_allclose(np.diff(scales), np.diff(scales)[0])
