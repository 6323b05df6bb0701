"""Profiles of data without bins: of any range, in any order, and what can be planned on them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import fastsample as fs
from fastsample import ops
from fastsample.ops.draws import PROFILE_DRAW
from tests.helpers.latents import RANGES, SCHEDULE, Latents
from tests.helpers.networks import denoiser, halve, halve_wide
from tests.helpers.profile_cases import TIMES, assert_same, levels

EVERY = range(50, 1001, 50)
SMALL = Latents(shape=(2, 3))


@pytest.fixture(scope="module", params=RANGES)
def measured(request):
    """Latents, and their profile by the default arguments."""
    latents = RANGES[request.param]
    found = fs.profile(latents.denoiser(), latents.samples(16), times=EVERY)
    return latents, found


# ---- any range by default ----


def test_the_default_takes_any_range(measured):
    latents, found = measured
    x0 = latents.samples(16)
    assert float(x0.abs().max()) > 4.0
    assert not found.has_bins
    assert "no bins" in repr(found)
    same = fs.profile(latents.denoiser(), x0, times=EVERY, bin_width=None)
    assert_same(found, same)


def test_errors_are_those_of_a_plain_loop(measured):
    latents, found = measured
    x0 = latents.samples(16).double()
    eps = ops.noise(torch.tensor([0]), torch.arange(16), latents.shape, draw=PROFILE_DRAW).double()
    for k, t in enumerate(EVERY):
        alpha, sigma = (float(level) for level in SCHEDULE.levels(float(t)))
        guess = latents.estimate(alpha * x0 + sigma * eps, alpha, sigma)
        error = float((x0 - guess).square().sum() / 16)
        # The network sees float32, whose epsilon of 1.2e-7 is divided by alpha; sizes are of |x0|.
        size = float(x0.square().sum() / 16)
        assert found.error[k] == pytest.approx(error, rel=1e-4, abs=1e-9 * size / alpha**2), t


def test_planned_times_are_better_than_even_ones(measured):
    latents, found = measured
    model = latents.denoiser()
    start = torch.randn(64, *latents.shape, generator=torch.Generator().manual_seed(9))
    fine = fs.sample(model, 250, start=start, method="ddim", grid="uniform")

    def miss(grid):
        """The median, because a sample that ends in another mode outweighs all others."""
        x = fs.sample(model, grid, start=start, method="ddim")
        return float((x - fine).square().flatten(1).mean(1).median().sqrt())

    planned = found.costs("trajectory").best_grid(6)
    assert miss(planned) < 0.75 * miss(fs.grids.uniform(1000, 6))
    automatic = fs.sample(model.with_profile(found), 6, start=start, method="ddim")
    assert torch.equal(automatic, fs.sample(model, planned, start=start, method="ddim"))


def test_mse_is_the_paper_s(measured):
    _, found = measured
    table = found.costs("mse")
    t, s = np.meshgrid(table.times, table.times, indexing="ij")
    expected = np.where(s < t, (t - s) / 1000.0 * np.append(0.0, found.error)[:, None], np.inf)
    np.testing.assert_allclose(table.costs, expected, rtol=1e-12)
    assert table.best_grid(6).times[0] == 1000.0


# ---- bins, or none: by the set of the data alone ----

INSIDE, OUTSIDE = levels(6, 3), levels(6, 3, seed=1)
BETWEEN = OUTSIDE.clone()
OUTSIDE[4, 1], BETWEEN[4, 1] = 1.01, 0.3
PARTS = {"inside": INSIDE, "outside": OUTSIDE, "more": levels(5, 3, seed=2)}


def measure(data, network=halve, **options):
    return fs.profile(denoiser(network, 3), data, **{"times": TIMES, "trajectories": 4, **options})


@pytest.mark.parametrize("value", ["out of range", "between levels"])
@pytest.mark.parametrize("order", list(itertools.permutations(PARTS)), ids="-".join)
def test_the_order_of_the_batches_does_not_matter(order, value):
    """One value on no level of 8-bit data is enough, in whatever batch it comes."""
    parts = PARTS if value == "out of range" else {**PARTS, "outside": BETWEEN}
    data = torch.cat([parts[name] for name in order])
    expected = measure(data, bin_width=None)
    for given, size in ((data, 256), (data, 1), (iter([parts[name] for name in order]), 1)):
        found = measure(given, batch_size=size)
        assert not found.has_bins
        assert_same(found, expected)


def test_data_on_bins_keep_them():
    found = measure(iter([INSIDE, PARTS["more"]]))
    assert found.settings.bin_width == 2 / 255
    assert_same(found, measure(torch.cat([INSIDE, PARTS["more"]]), bin_width=2 / 255))


BYTES = torch.arange(256).repeat(2)[:510].reshape(-1, 3)  # every level
ROUNDED = {
    "float32": BYTES / 127.5 - 1.0,
    "float64": BYTES.double() / 255.0 * 2.0 - 1.0,
    "normalised": (BYTES / 255.0 - 0.5) / 0.5,
    "cast to float16": (BYTES / 127.5 - 1.0).half(),
    "float16": BYTES.half() / 127.5 - 1.0,
    "float16 normalised": (BYTES.half() / 255.0 - 0.5) / 0.5,
    "bfloat16": (BYTES / 127.5 - 1.0).bfloat16(),
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_levels_are_known_in_every_dtype(kind):
    assert measure(ROUNDED[kind]).settings.bin_width == 2 / 255


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_real_numbers_within_the_range_have_no_bins(dtype):
    """bfloat16 cannot tell: near 1 its numbers are half a level apart."""
    generator = torch.Generator().manual_seed(0)
    data = (0.3 * torch.randn(64, 3, generator=generator)).clamp(-1, 1).to(dtype)
    assert measure(data).has_bins == (dtype == torch.bfloat16)


def test_a_width_that_was_asked_for_is_never_dropped():
    assert measure(iter([INSIDE, BETWEEN]), bin_width=2 / 255).settings.bin_width == 2 / 255
    with pytest.raises(ValueError, match=r"data must be in \[-1, 1\].*got -.* to 1\.01; latents"):
        measure(iter([INSIDE, OUTSIDE]), bin_width=2 / 255)


@pytest.mark.parametrize("call", [6, 11, 16])
def test_an_interrupted_run_goes_on_with_or_without_bins(tmp_path, call):
    """The bins drop in the second of three batches: before, in, and after it. A call finds out
    whose file it is, and a batch has five."""
    data, calls = torch.cat(list(PARTS.values())), itertools.count(1)

    def stopping(x, t):
        if next(calls) == call:
            raise KeyboardInterrupt
        return halve(x, t)

    options = {"batch_size": 6, "trajectories": 0, "save": tmp_path / "profile"}
    with pytest.raises(KeyboardInterrupt):
        measure(data, stopping, **options)
    done = fs.Profile.load(tmp_path / "profile")
    assert (done.count, done.has_bins) == {6: (0, True), 11: (6, True), 16: (12, False)}[call]
    found = measure(data, **options)
    assert_same(found, measure(data, batch_size=6, trajectories=0), tolerance=0.0)
    assert_same(fs.Profile.load(tmp_path / "profile"), found, tolerance=0.0)


def test_halves_add_up_once_both_have_no_bins():
    one, two = measure(INSIDE), measure(OUTSIDE, sample_index=6)
    with pytest.raises(ValueError, match=r"settings must be .*; without_bins\(\) of a profile"):
        one.merge(two)
    whole = one.without_bins().merge(two)
    assert_same(whole, measure(torch.cat([INSIDE, OUTSIDE])))
    assert two.without_bins().arrays().keys() == two.arrays().keys()


def test_a_learned_variance_of_latents():
    model = denoiser(halve_wide, 3, variance="learned_range")
    found = fs.profile(model, 5.0 * INSIDE, times=TIMES, nodes=9)
    assert not found.has_bins
    assert np.isfinite(found.costs("elbo").costs[1:, 0]).all()


# ---- the bound of a density ----


@pytest.mark.parametrize("decoder", ["optimal", "forward", "posterior", [0.5, 0.1, 2.0, 3.0, 4.0]])
@pytest.mark.parametrize("variance", ["small", "large", "analytic"])
def test_the_bound_is_that_of_a_plain_loop(variance, decoder):
    """Sums of ``-log N(x0; x0hat, v)`` and KL divergences in float64, over the profile's noise."""
    x0 = SMALL.samples(12)
    found = fs.profile(SMALL.denoiser(), x0, times=TIMES, trajectories=0)
    table = found.costs("elbo", variance=variance, decoder=decoder)
    assert table.density
    assert ", density, 5 times)" in repr(table)
    levels_at = SCHEDULE.levels(TIMES)
    eps = ops.noise(torch.tensor([0]), torch.arange(12), SMALL.shape, draw=PROFILE_DRAW).double()
    x0 = x0.double()
    for i, t in enumerate(TIMES):
        alpha, sigma = (float(level[i]) for level in levels_at)
        guess = SMALL.estimate(alpha * x0 + sigma * eps, alpha, sigma)
        square = float((x0 - guess).square().mean())
        chosen = {
            "optimal": square,
            "forward": sigma**2,
            "posterior": sigma**2 if i else _posterior(TIMES[1], TIMES[0]),
        }
        v = chosen[decoder] if isinstance(decoder, str) else decoder[i]
        nats = -Normal(guess, math.sqrt(v)).log_prob(x0).sum() / 12
        assert table.costs[i + 1, 0] == pytest.approx(float(nats), rel=1e-4, abs=1e-3)
        for j in range(i):
            alpha_s, sigma_s = (float(level[j]) for level in levels_at)
            beta = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2
            weight, small = alpha_s * beta / sigma**2, _posterior(t, TIMES[j])
            v = {"small": small, "large": beta, "analytic": small + weight**2 * square}[variance]
            step = kl_divergence(
                Normal(weight * x0, math.sqrt(small)), Normal(weight * guess, math.sqrt(v))
            )
            expected = float(step.sum() / 12)
            assert table.costs[i + 1, j + 1] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def _posterior(t, s):
    """Variance of q(x_s | x_t, x0)."""
    alpha_t, sigma_t = (float(level) for level in SCHEDULE.levels(t))
    alpha_s, sigma_s = (float(level) for level in SCHEDULE.levels(s))
    return sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)


def test_a_density_has_nats_and_no_bits():
    table = fs.profile(SMALL.denoiser(), SMALL.samples(12), times=TIMES).costs("elbo")
    grid = table.best_grid(3)
    assert table.nats_per_dim(grid) == pytest.approx((table.cost(grid) + table.prior) / 6)
    with pytest.raises(ValueError, match=r"^bits_per_dim: table must be of data on bins, got one "):
        table.bits_per_dim(grid)
    binned = measure(INSIDE).costs("elbo")
    grid = binned.best_grid(3)
    nats = binned.bits_per_dim(grid) * math.log(2.0)
    assert binned.nats_per_dim(grid) == pytest.approx(nats)
    with pytest.raises(ValueError, match=r'^nats_per_dim: objective must be "elbo", got a table'):
        measure(INSIDE).costs("mse").nats_per_dim(grid)
