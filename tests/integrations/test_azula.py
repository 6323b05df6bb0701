"""azula: its denoisers and schedules, with stand-ins of its interface and, where it is, itself."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.integrations import azula
from tests.helpers.refusals import check_refusal, refusals

SHAPE = (3, 4, 4)
LOW = 1e-3


def exploding(t):
    return torch.ones_like(t), torch.exp((1 - t) * math.log(LOW) + t * math.log(1e3))


def preserving(t):
    alpha = torch.exp(math.log(LOW) * t**2)
    return alpha, torch.sqrt(1 - alpha**2 + LOW**2)


def cosine(t):
    alpha = torch.cos(math.acos(LOW) * t)
    return alpha, torch.sqrt(1 - alpha**2 + LOW**2)


def rectified(t):
    return t * LOW + (1 - t), t + (1 - t) * LOW


def decay(t):
    return rectified((1 - 0.1**t) / (1 - 0.1))


SCHEDULES = {f.__name__: f for f in (exploding, preserving, cosine, rectified, decay)}


class Karras(nn.Module):
    """azula's KarrasDenoiser: preconditioning by alpha and sigma, and a posterior with a mean."""

    def __init__(self, schedule):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 3, 3, padding=1)
        self.schedule = schedule
        self.told = []
        self.eval()

    def forward(self, x_t, t, shift=0.0):
        self.told.append(t)
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in self.schedule(t))
        norm = torch.rsqrt(alpha**2 + sigma**2)
        time = torch.log(sigma / alpha)
        dtype = self.backbone.weight.dtype
        shift = torch.as_tensor(shift).reshape(-1, 1, 1, 1) + time.to(dtype) / 10
        output = torch.tanh(self.backbone((norm * x_t).to(dtype)) + shift)
        mean = alpha * norm**2 * x_t + sigma * norm * output.to(x_t)
        return SimpleNamespace(mean=mean)


def ddim(model, x, times, eta, noise):
    """DDIM by azula's formula, whose eta multiplies the variance, but for the end: the mean."""
    for k, (t, s) in enumerate(pairwise(times)):
        alpha_t, sigma_t = model.schedule(t)
        mean = model(x, t.expand(2)).mean
        if s == 0:
            return mean
        alpha_s, sigma_s = model.schedule(s)
        tau = eta * (1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2)
        eps = (x - alpha_t * mean) / sigma_t
        x = alpha_s * mean + sigma_s * (torch.sqrt(1 - tau) * eps + torch.sqrt(tau) * noise[k])
    return x


@pytest.mark.parametrize("eta", [0.0, 0.36, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_is_theirs(name, eta):
    model = Karras(SCHEDULES[name]).double()
    denoiser = azula.denoiser(model, SHAPE)
    steps = 8
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)  # exact in float32: eighths
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(steps, 2, *SHAPE, generator=generator, dtype=torch.float64)
    x = denoiser.schedule.start_scale(1.0) * torch.randn(
        2, *SHAPE, generator=generator, dtype=torch.float64
    )
    drawn = noise if eta else None
    ours = fs.sample(
        denoiser, steps, method="ddim", eta=math.sqrt(eta), grid="uniform", start=x, noise=drawn
    )
    with torch.no_grad():
        theirs = ddim(model, x, times, eta, noise)
    # The network computes its levels in the float32 that tells it the time, as azula's would.
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, float(ours.abs().max()))


def test_the_schedule_is_read_in_double_precision():
    schedule = azula.denoiser(Karras(cosine), SHAPE).schedule
    t = np.array([1e-3, 0.3, 1.0])
    alpha = np.cos(np.arccos(LOW) * t)
    assert schedule.T == 1.0
    assert np.allclose(schedule.alpha(t), alpha, rtol=1e-14)
    assert np.allclose(schedule.sigma(t), np.sqrt(1 - alpha**2 + LOW**2), rtol=1e-14)


def test_methods_conditions_and_schedules_work():
    model = Karras(rectified)
    denoiser = azula.denoiser(model, SHAPE, uncond={"shift": 0.0})
    assert azula.denoiser(model, SHAPE).schedule == denoiser.schedule
    plain = fs.sample(denoiser, 4, seed=0, cond={"shift": 0.5})
    guided = fs.sample(denoiser, 4, seed=0, cond={"shift": 0.5}, guidance=2.0)
    assert plain.shape == (1, *SHAPE)
    assert not torch.equal(plain, guided)
    assert model.told[0].tolist() == [1.0]


def test_a_plain_callable_with_a_schedule_will_do():
    class Shrink:
        schedule = staticmethod(preserving)

        def __call__(self, x_t, t):
            return SimpleNamespace(mean=0.5 * x_t)

    out = fs.sample(azula.denoiser(Shrink(), SHAPE), 3, seed=0)
    assert torch.isfinite(out).all()


@refusals(
    azula={
        "not callable": (lambda: azula.denoiser(3, SHAPE), TypeError, "model must be callable"),
        "no schedule": (
            lambda: azula.denoiser(nn.Identity(), SHAPE),
            TypeError,
            "must have a schedule, a callable from times to",
        ),
        "rising": (
            lambda: azula.denoiser(Karras(lambda t: rectified(1 - t)), SHAPE),
            ValueError,
            "alpha must be 1 at t = 0",
        ),
    }
)
def test_bad_input_gets_one_line(call, error, match):
    check_refusal(call, error, match)


def test_azula_itself():
    package = pytest.importorskip("azula")
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    assert package

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x, t):
            return torch.tanh(self.convolution(x) + t.reshape(-1, 1, 1, 1) / 10)

    model = KarrasDenoiser(Backbone(), VPSchedule()).eval()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    ours = fs.sample(azula.denoiser(model, SHAPE), 8, method="ddim", grid="uniform", start=x)
    theirs = DDIMSampler(model, steps=8, silent=True)(x)
    # theirs ends with noise of deviation sigma(0) = 0.001 left, times an eps of a few units
    assert (ours - theirs).abs().max() < 0.01
