"""Losses of data without bins: a density at the bound's last step, and no range anywhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import fastsample as fs
from fastsample.training import DiffusionLoss, FidelityLoss, Trainer, VDMLoss
from tests.helpers.latents import RANGES, SCHEDULE, Latents

S = fs.NoiseSchedule.linear(1000)
X0 = torch.full((1, 4, 2, 2), 3.0, dtype=torch.float64)
EPS = torch.randn(X0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FIRST = torch.tensor([1])


def off_by(shift, raw=0.0):
    """A network whose x0 at t = 1 is too large by `shift`, with a raw variance."""
    alpha, sigma = (float(level) for level in S.levels(1.0))
    eps = EPS - alpha / sigma * shift
    return lambda x, t: torch.cat((eps, torch.full_like(eps, raw)), 1)


# ---- the bound of DiffusionLoss ----


@pytest.mark.parametrize("kind", ["vlb", "hybrid"])
def test_the_exact_prediction_costs_least(kind):
    """Discretized, every latent above 1 is in the last bin, and the more is the better."""
    loss = DiffusionLoss(S, kind=kind, bin_width=None)
    found = {
        shift: float(loss(off_by(shift), X0, FIRST, EPS)["vb"])
        for shift in (-0.5, -0.01, 0.0, 0.01, 0.5, 5.0)
    }
    assert found[-0.5] > found[-0.01] > found[0.0] < found[0.01] < found[0.5] < found[5.0]
    assert found[0.5] == pytest.approx(found[-0.5])
    terms = loss(off_by(0.3), X0, FIRST, EPS)
    total = 1000.0 * terms["vb"] * (1.0 if kind == "vlb" else 1e-3)
    torch.testing.assert_close(terms["loss"], total + (terms["mse"] if kind == "hybrid" else 0.0))


@pytest.mark.parametrize("raw", [-1.0, 0.0, 1.0])
def test_the_last_term_is_the_log_density(raw):
    """Its learned variance lies between the posterior's of t = 2 and the first beta."""
    (a1, a2), (s1, s2) = S.levels([1.0, 2.0])
    posterior = s1**2 / s2**2 * (1.0 - (a2 / a1) ** 2)
    share = (raw + 1.0) / 2.0
    deviation = math.exp(0.5 * (share * math.log(s1**2) + (1.0 - share) * math.log(posterior)))
    found = DiffusionLoss(S, kind="vlb", bin_width=None)(off_by(0.02, raw), X0, FIRST, EPS)
    nats = -Normal(X0 + 0.02, deviation).log_prob(X0).mean()
    assert float(found["vb"]) == pytest.approx(float(nats) / math.log(2.0), rel=1e-9)


def test_other_terms_are_those_with_bins():
    x0, t = 0.1 * X0.expand(3, -1, -1, -1), torch.tensor([2, 500, 1000])
    noise = EPS.expand(3, -1, -1, -1)

    def network(x, index):
        return torch.cat((0.9 * x, 0.1 * x), 1)

    binned, density = (
        DiffusionLoss(S, kind="vlb", bin_width=width)(network, x0, t, noise)["vb"]
        for width in (2 / 255, None)
    )
    assert torch.equal(binned, density)


def test_the_learned_variance_is_drawn_to_the_error_s():
    """At t = 1 the gradient of v is zero where the variance is the squared error."""
    (a1, a2), (s1, s2) = S.levels([1.0, 2.0])
    posterior = s1**2 / s2**2 * (1.0 - (a2 / a1) ** 2)
    raw = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    share = (0.2 + 1.0) / 2.0
    right = math.exp(0.5 * (share * math.log(s1**2) + (1.0 - share) * math.log(posterior)))
    slopes = []
    for factor in (0.9, 1.0, 1.1):
        eps = off_by(factor * right)(X0, FIRST)[:, :4]
        loss = DiffusionLoss(S, kind="hybrid", bin_width=None)
        value = loss(lambda x, t, e=eps: torch.cat((e, raw.expand_as(e)), 1), X0, FIRST, EPS)
        (slope,) = torch.autograd.grad(value["loss"].sum(), raw)
        slopes.append(float(slope))
    assert slopes[0] > 0.0 > slopes[2]
    assert abs(slopes[1]) < 1e-9 * slopes[0]


def test_a_bin_width_is_checked():
    for width, error in ((0.0, ValueError), (2.5, ValueError), ("none", TypeError)):
        with pytest.raises(error, match=r"^DiffusionLoss: bin_width must be "):
            DiffusionLoss(S, bin_width=width)
    assert "bin_width=None" in repr(DiffusionLoss(S, bin_width=None))


# ---- VDMLoss ----


@pytest.mark.parametrize("deviation", [0.02, 1.5, 5.0])
def test_the_continuous_bound_of_gaussian_data_is_their_entropy(deviation):
    """``D / 2 log(2 pi e s^2)`` when gamma(0) is far below the data's log-SNR."""

    def network(x, timestep):
        gamma = -timestep[:, None]
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        return sigma * x / ((alpha * deviation) ** 2 + sigma**2)

    ends = (-20.0, 12.0)
    model = fs.Denoiser(network, fs.NoiseSchedule.vdm(*ends), (2,), time="log_snr")
    count = 40000
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, count, 2, generator=generator, dtype=torch.float64).unbind(0)
    t = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    terms = VDMLoss(*ends, levels="density")(model, deviation * x0, t, noise)
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * deviation**2)
    nats = terms["loss"].detach() * math.log(2.0)
    error = float(nats.std() / math.sqrt(count))
    assert float(nats.mean()) == pytest.approx(entropy, abs=5.0 * error)
    reconstruction = 0.5 * (1.0 + math.log(2.0 * math.pi) - 20.0) / math.log(2.0)
    assert terms["reconstruction"].tolist() == pytest.approx([reconstruction] * count, rel=1e-6)


def test_the_end_of_a_learned_schedule_feels_the_density():
    """Without a reconstruction a shorter schedule is always better; with one it is not."""
    model = fs.Denoiser(
        lambda x, t: torch.zeros_like(x), fs.NoiseSchedule.vdm(-4.0, 3.0), (2,), time="log_snr"
    )
    loss = VDMLoss(-4.0, 3.0, levels="density")
    assert "levels=density" in repr(loss)
    x0 = torch.full((4, 2), 7.0)
    terms = loss(model, x0, torch.full((4,), 0.5), torch.ones(4, 2))
    (slope,) = torch.autograd.grad(terms["reconstruction"].sum(), loss.b)
    assert float(slope) == pytest.approx(4 * 0.5 / math.log(2.0))  # of 4 samples, per dimension
    with pytest.raises(ValueError, match=r'^VDMLoss: levels must be a tensor, "density" or None'):
        VDMLoss(levels="gaussian")


# ---- the trainer and the fidelity loss on latents ----


class Network(nn.Module):
    """The exact network, and one weight to be trained; with a raw variance if `wide`."""

    def __init__(self, latents: Latents, wide: bool = False) -> None:
        super().__init__()
        self.latents, self.wide = latents, wide
        self.gain = nn.Parameter(torch.tensor(0.8))
        self.raw = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (
            torch.as_tensor(level).to(x).reshape(-1, 1, 1, 1)
            for level in SCHEDULE.levels(t.double().numpy() + 1.0)
        )
        rows = [
            self.latents.estimate(part[None], float(a), float(s))[0]
            for part, a, s in zip(x, alpha, sigma, strict=True)
        ]
        eps = self.gain * (x - alpha * torch.stack(rows)) / sigma
        return torch.cat((eps, self.raw.expand_as(eps)), 1) if self.wide else eps


@pytest.mark.parametrize("name", RANGES)
def test_the_trainer_takes_latents(name):
    latents = RANGES[name]
    model = fs.Denoiser(Network(latents), SCHEDULE, latents.shape)
    Trainer(model, latents.samples(32), batch_size=16).run(3)
    assert 0.8 < model.model.gain.item() < 1.0  # the exact network is at 1


def test_a_learned_variance_of_latents_asks_for_the_density():
    """The default loss of such a model is the hybrid one, whose bound has 8-bit bins."""
    latents = RANGES["centred"]
    model = fs.Denoiser(Network(latents, True), SCHEDULE, latents.shape, variance="learned_range")
    x0 = latents.samples(32)
    with pytest.raises(ValueError, match=r'without bins need bin_width=None, or kind="simple"$'):
        Trainer(model, x0, batch_size=16).run(1)
    loss = DiffusionLoss.of(model, bin_width=None)
    assert loss.kind == "hybrid"
    before = model.model.raw.item()
    Trainer(model, x0, loss=loss, batch_size=16).run(3)
    assert model.model.gain.item() > 0.8
    assert model.model.raw.item() != before


def test_the_fidelity_loss_takes_latents():
    latents = RANGES["shifted"]
    x0 = latents.samples(32)
    model = fs.Denoiser(Network(latents), SCHEDULE, latents.shape)
    result = FidelityLoss(4, method="ddim", seed=3)(model, x0)
    x, y = (part.detach().double().flatten(1).numpy() for part in (result.samples, x0))
    assert np.abs(x).max() > 3.0

    def mean_distance(a, b, pairs):
        return sum(float(np.linalg.norm(p - q)) for p in a for q in b) / pairs

    within = mean_distance(x, x, 32 * 31) + mean_distance(y, y, 32 * 31)
    expected = 2.0 * mean_distance(x, y, 32 * 32) - within
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-4)
    result.loss.backward()
    assert torch.isfinite(model.model.gain.grad)
