"""Theory: for Gaussian data the exact denoiser is known, and so is what a sampler must give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import LINEAR, Gaussian

MEAN, DEVIATION = 0.6, 0.4
VDM, FLOW = fs.NoiseSchedule.vdm(), fs.NoiseSchedule.flow()


def exact_flow(schedule, start, t):
    """Where the probability flow carries x at time t: straight quantiles, for a Gaussian."""
    alpha, sigma = (float(level) for level in schedule.levels(t))
    deviation = math.sqrt((alpha * DEVIATION) ** 2 + sigma**2)
    return MEAN + DEVIATION * (start - alpha * MEAN) / deviation


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 4)])
def test_ddim_maps_noise_to_the_data(shape):
    model = Gaussian(LINEAR, MEAN, DEVIATION).denoiser(*shape)
    samples = 12000 // math.prod(shape)
    options = {"method": "ddim", "grid": "log_snr", "seed": 0, "dtype": torch.float64}
    got = fs.sample(model, 250, num_samples=samples, **options)
    n = got.numel()
    assert got.shape == (samples, *shape)
    assert float(got.mean()) == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(n) + 0.005)
    assert float(got.std()) == pytest.approx(
        DEVIATION, rel=5 / math.sqrt(2 * n) + 0.02
    )  # sampling error, and the steps' own


@pytest.mark.parametrize(
    ("schedule", "prediction", "make"),
    [
        (LINEAR, "epsilon", lambda K: grids.uniform(1000.0, K)),
        (LINEAR, "epsilon", lambda K: grids.karras(LINEAR, K)),
        (VDM, "v", lambda K: grids.uniform(1.0, K)),
        (FLOW, "flow", lambda K: grids.uniform(1.0, K)),
    ],
    ids=["linear", "linear, karras", "vdm", "flow"],
)
def test_ddim_converges_with_order_one(schedule, prediction, make):
    start = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    model = Gaussian(schedule, MEAN, DEVIATION, prediction).denoiser(1)
    budgets = np.array([20, 40, 80, 160])
    errors = []
    for K in budgets:
        got = fs.sample(model, make(int(K)), method="ddim", start=start)
        errors.append(float((got - exact_flow(schedule, start, schedule.T)).abs().max()))
    slope = np.polyfit(np.log(budgets), np.log(errors), 1)[0]
    assert -1.2 < slope < -0.8, errors


def moments(plan, mean=MEAN, deviation=DEVIATION):
    """(mean, variance) of a linear chain's result, from x_T ~ N(0, 1), in closed form."""
    m, v = 0.0, 1.0
    for k, row in enumerate(plan.rows.tolist()):
        p, q, _, _, _, a, b, e, *_, d, _, _ = row
        alpha, sigma = plan.alphas[k], plan.sigmas[k]
        total = alpha**2 * deviation**2 + sigma**2
        slope, offset = sigma / total, -sigma * alpha * mean / total  # eps = slope x + offset
        gain = a + b * (p + q * slope) + e * slope
        m = gain * m + (b * q + e) * offset
        v = gain**2 * v + d**2
    return m, v


PLANS = {
    "ancestral small": lambda g: fs.ancestral(LINEAR, g),
    "ancestral large": lambda g: fs.ancestral(LINEAR, g, variance="large"),
    "ddim eta=0.5": lambda g: fs.ddim(LINEAR, g, eta=0.5),
    "ddim eta=1": lambda g: fs.ddim(LINEAR, g, eta=1.0),
    "sigma-hat": lambda g: fs.ddim(LINEAR, g, sigma_hat=True),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_generated_noise_gives_the_variance_of_the_chain(plan, shape):
    plan = plan(grids.quadratic(1000, 25))
    model = Gaussian(LINEAR, MEAN, DEVIATION).denoiser(*shape)
    got = fs.sample(model, plan, num_samples=24000 // math.prod(shape), seed=8).double()
    mean, variance = moments(plan)
    n = got.numel()
    assert float(got.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(got.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


def test_ancestral_sampling_of_every_step_reaches_the_data():
    grid = grids.uniform(1000, 1000)
    for variance in ("small", "large"):
        mean, var = moments(fs.ancestral(LINEAR, grid, variance=variance))
        assert mean == pytest.approx(MEAN, abs=2e-3)
        assert var == pytest.approx(DEVIATION**2, rel=0.02)
    model = Gaussian(LINEAR, MEAN, DEVIATION).denoiser(2)
    got = fs.sample(model, 1000, method="ancestral", num_samples=2000, seed=0).double()
    n = got.numel()
    assert float(got.mean()) == pytest.approx(MEAN, abs=2e-3 + 5 * DEVIATION / math.sqrt(n))
    assert float(got.var()) == pytest.approx(DEVIATION**2, rel=0.02 + 5 * math.sqrt(2 / n))


@pytest.mark.parametrize("schedule", [LINEAR, VDM, FLOW], ids=["linear", "vdm", "flow"])
@pytest.mark.parametrize("options", [{"eta": 0.0}, {"eta": 0.8}, {"method": "ancestral"}])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_all_predictions_of_one_denoiser_agree(schedule, options, clip):
    # Below T: at T of the flow schedule there is no signal and epsilon says nothing. The times are
    # exact in float32, in which the network is told them.
    grid = fs.Grid(schedule.T * np.array([31, 22, 14, 6, 2, 0]) / 32)
    results = [
        fs.sample(
            Gaussian(schedule, MEAN, DEVIATION, prediction).denoiser(2, 3),
            grid,
            num_samples=50,
            seed=0,
            clip=clip,
            dtype=torch.float64,
            **options,
        )
        for prediction in ("epsilon", "x0", "v", "flow")
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-10, rtol=1e-10)
    single = [
        fs.sample(
            Gaussian(schedule, MEAN, DEVIATION, prediction).denoiser(2, 3),
            grid,
            num_samples=50,
            seed=0,
            clip=clip,
            **options,
        )
        for prediction in ("epsilon", "x0", "v", "flow")
    ]
    for other in single:
        torch.testing.assert_close(other.double(), results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_a_start_without_signal(prediction):
    model = Gaussian(FLOW, MEAN, DEVIATION, prediction).denoiser(2)
    start = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    got = fs.sample(model, 200, method="ddim", start=start)
    torch.testing.assert_close(got, exact_flow(FLOW, start, 1.0), atol=5e-3, rtol=0)
