"""Profiles: what one pass over data measures, in how many network calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.likelihood.bound import discretized_gaussian_log_likelihood
from fastsample.profiling.learned_range import chebyshev_nodes
from tests.helpers.diagonal import SMALL, excess
from tests.helpers.networks import LINEAR, Spy, denoiser, halve, halve_wide, per_sample
from tests.helpers.profile_cases import TIMES, assert_same, levels


def conditioned(x, t, y):
    return halve(x, t) + 0.25 * per_sample(y, x)


# ---- what is measured ----


def test_gaussian_data_within_five_standard_errors():
    found = fs.profile(SMALL.denoiser(), SMALL.samples(4000), bin_width=None, trajectories=0)
    assert found.times.tolist() == list(range(1, 21))
    errors, eps = SMALL.errors(found.times), SMALL.eps_squares(found.times)
    assert np.all(np.abs(found.error - errors.sum(1)) < 5.0 * found.error_standard_error)
    # A squared Gaussian has twice its mean, squared, as variance.
    spread = np.sqrt(2.0 * (errors**2).sum(1) / found.count)
    np.testing.assert_allclose(found.error_standard_error, spread, rtol=0.1)
    spread = np.sqrt(2.0 * (eps**2).sum(1) / found.count)
    assert np.all(np.abs(found.eps_square - eps.sum(1)) < 5.0 * spread)
    prior = SMALL.profile().prior
    assert found.prior == pytest.approx(prior, rel=0.1)


def test_a_clipped_estimate_has_the_clipped_error():
    """With nothing known about x0 the estimate is clipped to a constant."""
    model = denoiser(lambda x, t: torch.full_like(x, -1e6), 3, clip=(-0.5, 0.25))
    x0 = levels(50, 3)
    found = fs.profile(model, x0, times=[500], trajectories=0)
    assert found.settings.clip == (-0.5, 0.25)
    assert found.error[0] == pytest.approx(float((x0.double() - 0.25).square().sum() / 50))
    assert found.eps_square[0] == pytest.approx(3e12)  # before clipping
    free = fs.profile(model, x0, times=[500], trajectories=0, clip=None)
    assert free.error[0] > 1e12


def test_learned_variance():
    def network(x, t):
        return torch.cat((halve(x, t), torch.full_like(x, -0.5)), dim=1)  # v = 1 / 4

    model = denoiser(network, 2, 3, variance="learned_range")
    found = fs.profile(model, levels(20, 2, 3), times=TIMES, nodes=9, trajectories=0)
    nodes = chebyshev_nodes(LINEAR.sigma(found.times) ** 2, 9)
    np.testing.assert_allclose(found.nodes, nodes, rtol=1e-12)
    np.testing.assert_allclose(found.sums["v"], 20 * 6 / 4, rtol=1e-12)
    np.testing.assert_allclose(found.sums["excess"], 20 * 6 * excess(nodes / 4), rtol=1e-12)
    weighted = found.sums["error"][:, None] * np.exp(-nodes / 4)
    np.testing.assert_allclose(found.sums["weighted"], weighted, rtol=1e-12)


def test_decoder_likelihood_is_that_of_the_bound():
    x0, width = levels(30, 4), 2 / 255
    seen = Spy(lambda x, t: 0.1 * x)
    found = fs.profile(denoiser(seen, 4, clip=1.0), x0, times=[20, 400], trajectories=0)
    for k, t in enumerate((20.0, 400.0)):
        alpha, sigma = LINEAR.levels(t)
        x = seen.inputs[k].double()
        x0hat = ((x - sigma * 0.1 * x) / alpha).clamp(-1.0, 1.0)
        for j in (0, 20, 47):
            scale = torch.tensor(found.log_scales[j])
            nats = discretized_gaussian_log_likelihood(x0.double(), x0hat, scale, bin_width=width)
            # float32 outputs of the network
            assert found.sums["nll"][k, j] == pytest.approx(-float(nats.sum()), rel=1e-5)


class Scale(torch.nn.Module):
    """A network whose parameters have a dtype; keeps what it sees and says."""

    def __init__(self, dtype):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.3, dtype=dtype))
        self.seen, self.said = [], []

    def forward(self, x, t):
        self.seen.append(x)
        self.said.append(torch.tanh(x * self.factor))
        return self.said[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_precision(dtype):
    """The error is that of the estimate from what the network saw: rounded, here."""
    network, x0 = Scale(dtype), levels(8, 3)
    found = fs.profile(denoiser(network, 3, clip=1.0), x0, times=TIMES, trajectories=3)
    assert {x.dtype for x in network.seen} == {dtype}
    short = dtype != torch.float64
    for k, t in enumerate(TIMES):
        alpha, sigma = LINEAR.levels(t)
        x, m = network.seen[k].double(), network.said[k].double()
        error = (x0.double() - ((x - sigma * m) / alpha).clamp(-1.0, 1.0)).square().sum()
        assert found.error[k] * 8 == pytest.approx(float(error), rel=1e-5 if short else 1e-12)
        eps = float(m.square().sum())
        assert found.eps_square[k] * 8 == pytest.approx(eps, rel=1e-12)


def test_one_sample_has_no_standard_error():
    found = fs.profile(denoiser(halve, 3), levels(1, 3), times=TIMES)
    assert np.isnan(found.error_standard_error).all()
    assert np.isfinite(found.error).all()


@pytest.mark.parametrize("schedule", [fs.NoiseSchedule.vdm(), fs.NoiseSchedule.flow()], ids=repr)
def test_continuous_time(schedule):
    model = fs.Denoiser(lambda x, t: 0.5 * x, schedule, (3,), prediction="v", time="fraction")
    found = fs.profile(model, levels(3, 3), trajectories=0)
    assert found.times.shape == (256,)
    assert found.times[-1] == schedule.T
    np.testing.assert_allclose(np.diff(found.times), found.times[0], rtol=1e-9)
    some = fs.profile(model, levels(3, 3), trajectories=0, times=found.times[[3, 100, 255]])
    np.testing.assert_allclose(some.error, found.error[[3, 100, 255]], rtol=1e-12)


def test_a_grid_stands_for_its_times():
    model, x0 = denoiser(halve, 3), levels(4, 3)
    found = fs.profile(model, x0, times=fs.Grid([900, 30, 2, 0]))
    assert_same(found, fs.profile(model, x0, times=[2, 30, 900]), tolerance=0.0)


def test_the_last_time_may_be_below_T():
    """The prior is that of the last time measured."""
    found = fs.profile(SMALL.denoiser(), SMALL.samples(500), times=[2, 9], bin_width=None)
    alpha, sigma = (float(level) for level in SMALL.schedule.levels(9.0))
    energy = alpha**2 * float(SMALL.samples(500).double().square().sum()) / 500
    expected = 0.5 * (energy + 6 * (sigma**2 - 1.0 - 2.0 * math.log(sigma)))
    assert found.prior == pytest.approx(expected, rel=1e-9)


def test_continuous_data_may_be_anywhere():
    found = fs.profile(denoiser(halve, 3), 7.0 * levels(4, 3), times=TIMES, bin_width=None)
    assert found.sums["nll"].shape == (5, 0)
    assert np.isfinite(found.error).all()


# ---- batches, halves, calls ----


@pytest.mark.parametrize("learned", [False, True])
def test_it_does_not_depend_on_the_batches(learned):
    options = {"variance": "learned_range"} if learned else {"clip": 1.0}
    model, x0 = denoiser(halve_wide if learned else halve, 3, 4, **options), levels(23, 3, 4)
    whole = fs.profile(model, x0, times=TIMES, trajectories=9)
    for data, size in ((x0, 4), (x0, 1), (x0.split(7), 256), (iter([x0[:0], x0]), 1)):
        parts = fs.profile(model, data, times=TIMES, trajectories=9, batch_size=size)
        assert_same(parts, whole)
    other = fs.profile(model, x0, times=TIMES, trajectories=9, seed=1)
    assert not np.any(other.error == whole.error)


def test_conditions_go_with_their_samples():
    model, x0, y = denoiser(conditioned, 3), levels(11, 3), torch.arange(11.0) / 11
    whole = fs.profile(model, x0, times=TIMES, trajectories=7, cond={"y": y})
    for cond in (y, y.tolist(), y.numpy()):
        parts = fs.profile(model, x0, times=TIMES, trajectories=7, cond={"y": cond}, batch_size=3)
        assert_same(parts, whole)


@pytest.mark.parametrize("trajectories", [0, 5, 16, 64])
def test_two_halves_merge_into_the_whole(trajectories):
    model, x0 = denoiser(halve_wide, 3, variance="learned_range"), levels(23, 3)
    run = {"times": TIMES, "trajectories": trajectories}
    whole = fs.profile(model, x0, **run)
    first = fs.profile(model, x0[:11], **run)
    second = fs.profile(model, x0[11:], sample_index=11, **run)
    assert_same(first.merge(second), whole)
    assert_same(second.merge(first), whole)
    if trajectories:
        assert first.merge(second).trajectories.count == min(trajectories, 23)


@pytest.mark.parametrize(
    ("count", "batch_size", "trajectories", "calls"),
    [
        (10, 10, 0, 5),
        (10, 4, 0, 3 * 5),
        (10, 10, 1, 5 + 5),
        (10, 4, 4, 3 * 5 + 5),
        (10, 4, 6, 3 * 5 + 2 * 5),
        (10, 4, 64, 3 * 5 + 3 * 5),
    ],
)
def test_network_calls(count, batch_size, trajectories, calls):
    spy = Spy(halve)
    fs.profile(
        denoiser(spy, 3),
        levels(count, 3),
        times=TIMES,
        batch_size=batch_size,
        trajectories=trajectories,
    )
    assert len(spy) == calls
    assert sum(spy.batches) == 5 * (count + min(trajectories, count))
    assert {mode for _, mode in spy.modes} == {True}
