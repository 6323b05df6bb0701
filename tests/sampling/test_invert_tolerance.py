"""`invert` with a tolerance: decoding gives the data back, whatever the deterministic sampler."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from fastsample.sampling import exact_inversion
from tests.helpers.cases import PREDICTIONS
from tests.helpers.networks import (
    LINEAR,
    Gaussian,
    Spy,
    denoiser,
    halve,
    halve_wide,
    model_b,
    per_sample,
)
from tests.helpers.refusals import MODEL, START, check_refusal, refusals

TOLERANCE = 1e-6
SHAPE = (2, 3)


class Mixture:
    """The exact denoiser of two narrow Gaussians at -1 and 1, in any prediction."""

    def __init__(self, schedule=LINEAR, prediction="epsilon"):
        self.schedule, self.prediction = schedule, prediction
        self.levels = cache(lambda t: tuple(map(float, schedule.levels(t))))

    def __call__(self, x, t):
        alpha, sigma = self.levels(t[:1].item())  # of all samples
        variance = 0.04 * alpha**2 + sigma**2
        mean = torch.tanh(alpha * x / variance)  # of the two
        residual = (x - alpha * mean) / variance
        x0, eps = mean + 0.04 * alpha * residual, sigma * residual
        outputs = {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        return outputs[self.prediction]

    def denoiser(self, network=None):
        return fs.Denoiser(
            self if network is None else network,
            self.schedule,
            SHAPE,
            prediction=self.prediction,
            time=lambda times: torch.from_numpy(times.copy()),
        )


def data(batch=2):
    """Samples of the two Gaussians."""
    sides = torch.where(torch.rand(batch, *SHAPE) < 0.5, -1.0, 1.0).double()
    return sides + 0.2 * torch.randn(batch, *SHAPE).double()


def round_trip(model, x0, steps, tolerance=TOLERANCE, cond=None, **options):
    """What `invert` gives, decoded by `sample` and found near enough."""
    before = x0.clone()
    z = fs.invert(model, x0, steps, tolerance=tolerance, cond=cond, **options)
    assert torch.equal(x0, before)
    assert (z.shape, z.dtype, z.requires_grad, z.is_inference()) == (x0.shape, x0.dtype, 0, 0)
    clip = {} if isinstance(steps, fs.Plan) else {"clip": None}
    decoded = fs.sample(model, steps, start=z, cond=cond, **clip, **options)
    assert (decoded - x0).abs().max() <= tolerance
    return z


METHODS = {
    "ddim": {},
    "ddim raw": {"rederive": False},
    "ddim, log_snr": {"grid": "log_snr"},
    "fastdpm steps": {"method": "fastdpm"},
    "fastdpm var": {"method": "fastdpm", "approximation": "var", "extended": True},
    **{f"dpm++ {order}": {"method": "dpm++", "order": order} for order in (1, 2, 3)},
    "unipc 1": {"method": "unipc", "order": 1},
    "unipc 2": {"method": "unipc"},
}


@pytest.mark.parametrize("K", [5, 20])
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_decoding_gives_the_data_back(options, K):
    round_trip(Mixture().denoiser(), data(), K, **options)


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_every_prediction_finds_the_same(options):
    x0 = data(1)
    models = [Mixture(prediction=prediction).denoiser() for prediction in PREDICTIONS]
    found = torch.stack([round_trip(model, x0, 4, **options) for model in models])
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-4, atol=1e-4)


# The last two have no signal at T.
ZERO_SNR = fs.NoiseSchedule.linear(20, 0.005, 1.0)
SCHEDULES = (fs.NoiseSchedule.cosine(), fs.NoiseSchedule.vdm(), fs.NoiseSchedule.flow(), ZERO_SNR)


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("method", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_schedule(schedule, method, steps):
    prediction = "flow" if schedule == fs.NoiseSchedule.flow() else "v"
    round_trip(Mixture(schedule, prediction).denoiser(), data(), steps, method=method)


@pytest.mark.parametrize("top", [1.0 - 1e-8, 0.999, 0.9])
def test_nearly_no_signal_at_the_start(top):
    steps = fs.Grid(top * np.linspace(1.0, 0.0, 6))
    round_trip(Mixture(fs.NoiseSchedule.flow(), "flow").denoiser(), data(), steps, method="dpm++")


PLANS = {
    "ddim": fs.ddim(LINEAR, grids.quadratic(1000, 6)),
    "raw": fs.ddim(LINEAR, fs.Grid([700.5, 20.0, 3.25, 0.0]), rederive=False),
    "dpm++": fs.dpm_solver(LINEAR, grids.log_snr(LINEAR, 4)),
    "unipc": fs.unipc(LINEAR, grids.karras(LINEAR, 3)),
    "untitled": fs.Plan(
        *(getattr(fs.ddim(LINEAR, grids.uniform(1000, 3)), n) for n in ("nodes", "rows")),
        *LINEAR.levels(grids.uniform(1000, 3).times),
        check="none",
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_plans(plan):
    round_trip(Mixture().denoiser(), data(), plan)


def test_other_steps_and_one_step():
    for steps in (grids.uniform(1000, 3), [900.0, 100.5, 2.0, 0.0], np.array([9.0, 0.0])):
        round_trip(Mixture().denoiser(), data(), steps)
    for steps in (1, fs.ddim(LINEAR, grids.uniform(1000, 1))):
        round_trip(denoiser(halve, *SHAPE), data(), steps)


def test_it_is_the_exact_inverse_of_gaussian_data():
    """Rows are linear: x_T is the data scaled by the product of the rows."""
    model = Gaussian(LINEAR, 0.0, 0.5).denoiser(*SHAPE)
    x0 = data()
    z = round_trip(model, x0, 10, tolerance=1e-12)
    scale = fs.sample(model, 10, start=torch.ones(1, *SHAPE).double(), clip=None)
    torch.testing.assert_close(z, x0 / scale, rtol=1e-9, atol=1e-9)


def test_float32_conditions_and_learned_variance():
    def labelled(x, t, y):
        return 0.1 * torch.tanh(x) * per_sample(y, x)

    x0 = data(3).float()
    for cond in ({"y": [1.0, 2.0, -1.0]}, {"y": 2.0}):
        round_trip(denoiser(labelled, *SHAPE), x0, [50, 20, 5, 0], 1e-4, cond=cond)
    wide = denoiser(halve_wide, *SHAPE, variance="learned_range", clip=1.0)
    round_trip(wide, x0, [50, 20, 5, 0], 1e-4)


@pytest.mark.parametrize("options", [{}, {"method": "dpm++"}], ids=str)
def test_a_sample_hardly_knows_its_batch(options):
    x0 = data(3)
    x0[1] *= 2.0  # far from the data: it takes longest
    z = round_trip(Mixture().denoiser(), x0, 5, **options)
    one = round_trip(Mixture().denoiser(), x0[:1], 5, **options)
    torch.testing.assert_close(z[:1], one, rtol=1e-4, atol=1e-4)
    assert fs.invert(MODEL, START[:0], 3, tolerance=1e-3, **options).shape == (0, 2, 3)


def test_no_more_calls_than_iterations_allow():
    spy = Spy(Mixture())
    with pytest.warns(UserWarning, match="tolerance should be reached"):
        fs.invert(Mixture().denoiser(spy), data(), 5, tolerance=1e-15, max_iterations=3)
    assert len(spy) <= 3 * (5 * 3 + 5)  # three times three a row, and decoding
    assert spy.modes == [(False, True)] * len(spy)


@pytest.mark.parametrize("options", [{}, {"method": "unipc"}], ids=str)
def test_out_of_reach_it_says_how_near_it_came(options):
    model = denoiser(lambda x, t: 0.5 * torch.tanh(x), *SHAPE, prediction="x0")
    x0 = torch.tensor([0.2, -0.4, 0.3, 0.0, -0.1, 0.62]).double().reshape(1, *SHAPE)
    with pytest.warns(UserWarning, match="invert: tolerance should be reached, but") as caught:
        z = fs.invert(model, x0, 4, tolerance=1e-5, **options)
    assert caught[0].filename == __file__
    found = re.search(r"is (\S+) away from x0, 1e-05 asked for", str(caught[0].message))
    error = (fs.sample(model, 4, start=z, **options) - x0).abs().max().item()
    assert float(found[1]) == pytest.approx(error, rel=1e-2)
    assert 0.12 <= error < 0.2  # the network ends at 0.5


def test_the_best_attempt_is_kept(monkeypatch):
    attempts = iter(torch.tensor([0.1, 0.3]))
    monkeypatch.setattr(exact_inversion, "fixed_point", lambda g, y, *_: y * 0.0 + next(attempts))
    model = denoiser(lambda x, t: x, *SHAPE, prediction="x0")
    with pytest.warns(UserWarning, match=r"decoding is 0\.1 away from x0"):
        assert fs.invert(model, torch.zeros(1, *SHAPE), 1, tolerance=1e-6).unique() == 0.1


# ---- what is refused


def invert(steps=3, tolerance=1e-3, **options):
    return lambda: fs.invert(MODEL, START, steps, tolerance=tolerance, **options)


DDIM = fs.ddim(LINEAR, grids.uniform(1000, 3))
NUMBERS = {
    "0": (invert(tolerance=0.0), ValueError, "invert: tolerance must be positive, got 0"),
    "-1": (invert(tolerance=-1.0), ValueError, "invert: tolerance must be positive, got -1"),
    "NaN": (
        invert(tolerance=float("nan")),
        ValueError,
        "invert: tolerance must be finite, got nan",
    ),
    "text": (invert(tolerance="a"), TypeError, "invert: tolerance must be a real number, got 'a'"),
    "none": (invert(max_iterations=0), ValueError, "max_iterations must be at least 1, got 0"),
    "half": (invert(max_iterations=1.5), TypeError, "max_iterations must be an integer, got 1.5"),
}
STOCHASTIC = {
    str(options): (invert(**options), ValueError, "invert: steps must be a deterministic plan, got")
    for options in (
        {"eta": 0.5},
        {"sigma_hat": True},
        {"method": "ancestral"},
        {"method": "shortcut"},
        {"method": "dpm++", "stochastic": True},
        {"method": "fastdpm", "kappa": 0.5},
        {"steps": fs.ddim(LINEAR, grids.uniform(1000, 3), eta=1.0)},
    )
}
PLANS_REFUSED = {
    "guided": (
        invert(DDIM.with_guidance(2.0)),
        ValueError,
        "uncond must be given with guidance, got",
    ),
    "clipped": (invert(DDIM.with_clip(1.0)), ValueError, r"that does not clip .*with_clip\(None\)"),
    "knob": (invert(DDIM, order=2), ValueError, "invert: order must be left out with a Plan"),
}
OTHERS = {
    "method": (invert(method="euler"), ValueError, "invert: method must be one of .* got 'euler'"),
    "not its knob": (
        invert(method="ddim", order=2),
        ValueError,
        r"invert: order must be left out with method=\"ddim\", got 2",
    ),
    "NaN": (
        lambda: fs.invert(lambda x, t: x * torch.nan, START, [9, 5, 0], tolerance=1e-3),
        ValueError,
        r"invert: the model's output must be finite, got NaN in row 0 of 2 \(t = 9\)",
    ),
    "NaN data": (
        lambda: fs.invert(model_b(), START * torch.nan, 3, tolerance=1e-3),
        ValueError,
        "invert: x0 must be finite, got NaN",
    ),
}


@refusals(numbers=NUMBERS, stochastic=STOCHASTIC, plans=PLANS_REFUSED, others=OTHERS)
def test_refused(call, error, match):
    check_refusal(call, error, match)
