"""Inversion of guided plans: sampling with the same scales returns the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids
from tests.helpers.networks import LINEAR, Spy, denoiser
from tests.helpers.refusals import check_refusal, refusals

K, TOLERANCE = 12, 1e-6


def labelled(x, t, y):
    return torch.tanh(x + y[:, None].to(x.dtype))


MODEL = denoiser(labelled, 6, uncond={"y": 0.0})
COND = {"y": [1.0, 2.0]}
X0 = torch.linspace(-0.9, 0.9, 12).double().reshape(2, 6)
METHODS = {
    "ddim": {"method": "ddim"},
    "ddim raw": {"method": "ddim", "rederive": False},
    "fastdpm": {"method": "fastdpm"},
    "dpm++": {"method": "dpm++", "order": 2},
    "unipc": {"method": "unipc"},
    "default": {},
}
GUIDANCE = {
    "one scale": {"guidance": 3.0},
    "interval": {"guidance": 2.5, "guidance_interval": (100, 700)},
    "per row": {"guidance": np.linspace(1.0, 2.5, K).tolist()},
    "below 1": {"guidance": 0.0},
}
each_guidance = pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
each_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


@each_guidance
@each_method
def test_sampling_with_the_same_scales_returns_the_data(options, guidance):
    guided = {**options, **guidance, "cond": COND}
    z = fs.invert(MODEL, X0, K, tolerance=TOLERANCE, **guided)
    assert (fs.sample(MODEL, K, start=z, **guided) - X0).abs().max() <= TOLERANCE
    # The noise of an unguided run is another one, which leads elsewhere.
    unguided = fs.invert(MODEL, X0, K, tolerance=TOLERANCE, cond=COND, **options)
    assert (fs.sample(MODEL, K, start=unguided, **guided) - X0).abs().max() > 1e4 * TOLERANCE


@each_guidance
def test_plain_inversion_is_that_of_the_guided_network(guidance):
    """The scale belongs to the time at which the network is called."""
    plan = fs.ddim(LINEAR, grids.uniform(1000, K))
    scale = fs.Sampler(MODEL, K, method="ddim", **guidance).plan.column("w")
    scales = dict(zip((plan.nodes[:-1] - 1).tolist(), scale.tolist(), strict=True))

    def mixed(x, t, y):
        u = labelled(x, t, torch.zeros_like(y))
        return u + scales[float(t[0])] * (labelled(x, t, y) - u)

    found = fs.invert(MODEL, X0, K, method="ddim", cond=COND, **guidance)
    expected = fs.invert(denoiser(mixed, 6), X0, K, method="ddim", cond=COND)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_plain_inversion_comes_nearer_with_more_steps():
    errors = []
    for steps in (25, 50, 100, 200):
        options = {"method": "ddim", "cond": COND, "guidance": 2.0}
        z = fs.invert(MODEL, X0, steps, **options)
        errors.append(float((fs.sample(MODEL, steps, start=z, **options) - X0).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("make", [fs.ddim, fs.unipc])
def test_a_guided_plan(make):
    plan = make(LINEAR, grids.uniform(1000, K)).with_guidance(3.0)
    z = fs.invert(MODEL, X0, plan, cond=COND, tolerance=TOLERANCE)
    assert (fs.sample(MODEL, plan, start=z, cond=COND) - X0).abs().max() <= TOLERANCE
    named = {"method": plan.method.partition("(")[0], "grid": "uniform", "guidance": 3.0}
    again = fs.invert(MODEL, X0, K, cond=COND, tolerance=TOLERANCE, **named)
    assert torch.equal(again, z)


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_only_guided_rows_run_twice_the_samples(tolerance):
    spy = Spy(labelled)
    model = denoiser(spy, 6, uncond={"y": 0.0})
    options = {"guidance": 2.0, "guidance_interval": (100, 700), "method": "ddim"}
    fs.invert(model, X0, K, cond=COND, tolerance=tolerance, **options)
    for told, size in zip(spy.told, spy.batches, strict=True):
        assert size == (4 if 100 < float(told[0]) + 1 <= 700 else 2)
    plain = Spy(labelled)
    fs.invert(denoiser(plain, 6, uncond={"y": 0.0}), X0, K, cond=COND, guidance=1.0)
    assert set(plain.batches) == {2}


def test_uncond_of_the_call():
    options = {"guidance": 2.0, "cond": COND, "method": "ddim", "tolerance": TOLERANCE}
    bare = denoiser(labelled, 6)
    z = fs.invert(bare, X0, K, uncond={"y": 0.0}, **options)
    assert torch.equal(z, fs.invert(MODEL, X0, K, **options))
    other = fs.invert(MODEL, X0, K, uncond={"y": -1.0}, **options)
    assert (other - z).abs().max() > 0.1


# ---- what is refused

REFUSED = {
    "uncond without guidance": (
        lambda: fs.invert(MODEL, X0, K, cond=COND, uncond={"y": 0.0}),
        ValueError,
        "^invert: guidance must be given with uncond, got None$",
    ),
    "no uncond": (
        lambda: fs.invert(denoiser(labelled, 6), X0, K, cond=COND, guidance=2.0),
        ValueError,
        "^invert: uncond must be given with guidance, got None",
    ),
    "interval alone": (
        lambda: fs.invert(MODEL, X0, K, cond=COND, guidance_interval=(100, 700)),
        ValueError,
        "^invert: guidance must be given with guidance_interval, got None$",
    ),
    "scales": (
        lambda: fs.invert(MODEL, X0, K, cond=COND, guidance=[1.0, 2.0]),
        ValueError,
        r"^invert: guidance must be one number or one per row \(12,\), got shape \(2,\)$",
    ),
    "rescaling": (
        lambda: fs.invert(MODEL, X0, K, cond=COND, guidance=2.0, guidance_rescale=0.7),
        TypeError,
        "^invert: keyword arguments must be those of invert or knobs of a method, got "
        r"guidance_rescale=0\.7",
    ),
}


@refusals(refused=REFUSED)
def test_refused(call, error, match):
    check_refusal(call, error, match)
