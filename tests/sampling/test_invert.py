"""From data to noise and back, and between two noises."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
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
from tests.helpers.stored import stored

DATA = stored("samplers")
ENCODE = [c for c in DATA["cases"] if c["kind"] == "ddim_encode"]
(SLERP,) = (c for c in DATA["cases"] if c["kind"] == "slerp")
X0 = torch.tensor([[-0.9, -0.6, -0.2, 0.0, 0.3, 0.5, 0.7, 0.95]], dtype=torch.float64)


def close(got, expected, tolerance=1e-10):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert torch.all((got - expected).abs() <= tolerance * expected.abs().clamp(min=1.0))


# ---- invert


@pytest.mark.parametrize("case", ENCODE, ids=[c["id"] for c in ENCODE])
def test_encoding_and_decoding(case):
    inputs, expected = case["inputs"], case["expected"]
    grid = grids.respaced(1000, inputs["section_counts"])
    x0 = torch.tensor([inputs["x_0"]], dtype=torch.float64)
    model = denoiser(model_b(), 8)
    encoded = fs.invert(model, x0, grid)
    close(encoded[0], expected["x_at_level_K_minus_1"])
    decoded = fs.sample(model, grid, start=encoded, method="ddim")
    close(decoded[0], expected["decoded_again_from_level_K_minus_1"])


@pytest.mark.parametrize("steps", [10, grids.quadratic(1000, 10), [1000, 500.5, 3, 0]], ids=str)
def test_K_minus_1_calls_at_the_cleaner_times(steps):
    grid = steps if isinstance(steps, fs.Grid) else None
    grid = grid or (grids.uniform(1000, steps) if isinstance(steps, int) else fs.Grid(steps))
    spy = Spy(model_b())
    fs.invert(denoiser(spy, 8), X0, steps, method="ddim")
    assert [float(t[0]) + 1 for t in spy.told] == grid.times[-2:0:-1].tolist()
    assert spy.modes == [(False, True)] * (len(grid) - 1)


def test_decoding_comes_nearer_with_more_steps():
    errors = []
    for K in (10, 20, 40, 80):
        encoded = fs.invert(model_b(), X0, K, shape=(8,), method="ddim")
        decoded = fs.sample(model_b(), K, shape=(8,), start=encoded, method="ddim")
        errors.append(float((decoded - X0).abs().max()))
    assert all(finer < 0.75 * coarser for coarser, finer in pairwise(errors))


def test_it_finds_the_quantiles_of_gaussian_data():
    mean, deviation = 0.3, 0.5
    model = Gaussian(LINEAR, mean, deviation).denoiser(1)
    scores = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
    alpha, sigma = (float(level) for level in LINEAR.levels(1000))
    got = fs.invert(model, mean + deviation * scores, 400, grid="log_snr")
    expected = alpha * mean + math.sqrt((alpha * deviation) ** 2 + sigma**2) * scores
    assert (got - expected).abs().max() < 0.03


def test_estimates_are_not_clipped():
    clipped = fs.invert(denoiser(model_b(), 8, clip=0.1), X0, 10)
    assert torch.equal(clipped, fs.invert(denoiser(model_b(), 8), X0, 10))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_every_prediction(prediction):
    plain = fs.invert(Gaussian(LINEAR, 0.3, 0.5).denoiser(8), X0, 12)
    other = fs.invert(Gaussian(LINEAR, 0.3, 0.5, prediction).denoiser(8), X0, 12)
    torch.testing.assert_close(other, plain, rtol=1e-9, atol=1e-9)


def test_learned_variance_is_ignored():
    wide = fs.invert(denoiser(halve_wide, 8, variance="learned_range"), X0, 6)
    assert torch.equal(wide, fs.invert(lambda x, t: halve_wide(x, t)[:, :8], X0, 6))


def test_conditions_shapes_and_dtypes():
    def labelled(x, t, y):
        return 0.1 * x * per_sample(y, x)

    both = torch.cat((X0, X0)).float()
    got = fs.invert(labelled, both, 6, cond={"y": [1.0, 2.0]})
    assert got.dtype == torch.float32
    for i, y in enumerate((1.0, 2.0)):
        assert torch.equal(got[i : i + 1], fs.invert(labelled, both[:1], 6, cond={"y": y}))
    assert fs.invert(model_b(), torch.zeros(0, 2, 3), 4).shape == (0, 2, 3)
    assert fs.invert(model_b(), both.bfloat16(), 4).dtype == torch.bfloat16


def test_the_data_stay_as_they_are():
    x0 = X0.clone().requires_grad_()
    got = fs.invert(model_b(), x0, 5)
    assert torch.equal(x0, X0)
    assert not got.requires_grad
    assert not got.is_inference()


# ---- interpolate


def test_slerp():
    inputs = SLERP["inputs"]
    z1, z2 = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("z1", "z2"))
    for shape in ((8,), (2, 4), (2, 2, 2)):
        got = fs.interpolate(z1.reshape(shape), z2.reshape(shape), inputs["alpha"])
        assert got.shape == (len(inputs["alpha"]), *shape)
        for values, expected in zip(got, SLERP["expected"], strict=True):
            close(values.flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_ends_and_the_norm(dtype):
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(64, generator=generator).to(dtype) for _ in range(2))
    got = fs.interpolate(z1, z2, torch.linspace(0, 1, 5))
    assert got.dtype == dtype
    torch.testing.assert_close(got[0], z1)
    torch.testing.assert_close(got[-1], z2)
    # Between noises of equal norm all have that norm; a straight line would be 0.7 of it.
    z2 = z2 * (z1.double().norm() / z2.double().norm()).to(dtype)
    norms = fs.interpolate(z1, z2, [0.25, 0.5, 0.75]).double().norm(dim=1)
    assert norms.numpy() == pytest.approx(float(z1.double().norm()), rel=2e-3)


@pytest.mark.parametrize("scale", [1.0, 2.5, 1.0 + 1e-9])
def test_parallel_noises_are_interpolated_linearly(scale):
    z = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = fs.interpolate(z, scale * z, [0.0, 0.25, 1.0])
    torch.testing.assert_close(got, torch.stack([z, (0.75 + 0.25 * scale) * z, scale * z]))


def test_opposite_and_zero_noises_give_numbers():
    z = torch.ones(4)
    assert torch.isfinite(fs.interpolate(z, -z, [0.0, 0.3, 1.0])).all()
    got = fs.interpolate(torch.zeros(4), z, np.array([0.0, 0.25, 1.0]))
    torch.testing.assert_close(got, torch.tensor([0.0, 0.25, 1.0])[:, None].expand(3, 4))


def test_interpolants_are_samples_to_start_from():
    z1, z2 = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double()
    got = fs.sample(model_b(), 5, shape=(8,), start=fs.interpolate(z1, z2, [0.0, 0.5, 1.0]))
    assert torch.equal(got[:1], fs.sample(model_b(), 5, shape=(8,), start=z1[None]))


# ---- what is refused

INVERT = {
    "integers": (
        lambda: fs.invert(MODEL, torch.ones(1, 2, 3).long()),
        TypeError,
        r"invert: x0 must be a floating tensor, got torch\.int64",
    ),
    "list": (
        lambda: fs.invert(MODEL, [1.0]),
        TypeError,
        r"invert: x0 must be a floating tensor, got list",
    ),
    "shape": (
        lambda: fs.invert(MODEL, torch.ones(1, 3, 3)),
        ValueError,
        r"invert: x0 must have shape \(1, 2, 3\), got \(1, 3, 3\)",
    ),
    "device": (
        lambda: fs.invert(MODEL, START.to("meta")),
        ValueError,
        r"invert: x0 must be on cpu, got meta",
    ),
    "one step": (
        lambda: fs.invert(MODEL, START, 1),
        ValueError,
        r"invert: steps must be at least 2, got 1",
    ),
    "bool steps": (
        lambda: fs.invert(MODEL, START, True),
        TypeError,
        r"invert: steps must be an integer, got True",
    ),
    "too many": (
        lambda: fs.invert(MODEL, START, 1001),
        ValueError,
        r"invert: steps must be in \[1, 1000\], got 1001",
    ),
    "plan": (
        lambda: fs.invert(MODEL, START, fs.ddim_inversion(LINEAR, grids.uniform(1000, 3))),
        ValueError,
        r"invert: steps must be a plan that ends at data \(t = 0\), got t = 1000",
    ),
    "NaN data": (
        lambda: fs.invert(MODEL, START * torch.nan),
        ValueError,
        r"invert: x0 must be finite, got NaN",
    ),
    "NaN model": (
        lambda: fs.invert(lambda x, t: x * torch.nan, START, [900, 5, 2, 0]),
        ValueError,
        r"invert: the model's output must be finite, got NaN in row 0 of 2 \(t = 2\)",
    ),
    "pipeline": (
        lambda: fs.invert(SimpleNamespace(unet=halve, scheduler=object()), START),
        TypeError,
        r"invert: model must be a Denoiser .*, got the pipeline SimpleNamespace",
    ),
    "noises of two shapes": (
        lambda: fs.interpolate(torch.ones(2), torch.ones(3), [0.5]),
        ValueError,
        r"interpolate: z2 must have the shape of z1 \(2,\), got \(3,\)",
    ),
    "one weight": (
        lambda: fs.interpolate(torch.ones(2), torch.ones(2), 0.5),
        ValueError,
        r"interpolate: weights must have shape \(W,\), got \(\)",
    ),
}


@refusals(invert=INVERT)
def test_refused(call, error, match):
    check_refusal(call, error, match)
