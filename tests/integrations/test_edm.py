"""EDM: networks of Karras et al. 2022 with stand-ins of their preconditioning, and their grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.integrations import edm
from tests.helpers.refusals import check_refusal, refusals


class Precond(nn.Module):
    """EDMPrecond: c_skip x + c_out F(c_in x, c_noise), in float32 whatever it is given."""

    img_channels, img_resolution, label_dim = 3, 4, 5
    sigma_min, sigma_max, sigma_data = 0.0, float("inf"), 0.5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Conv2d(3, 3, 3, padding=1)
        self.told = []
        self.eval()

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        self.told.append(sigma)
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        labels = torch.zeros(1, 5) if class_labels is None else class_labels
        spread = (sigma**2 + self.sigma_data**2).sqrt()
        inside = self.model(x / spread) + 0.1 * labels.sum(1).reshape(-1, 1, 1, 1)
        out = torch.tanh(inside + sigma.log() / 4)
        return self.sigma_data**2 / spread**2 * x + sigma * self.sigma_data / spread * out

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def their_levels(steps, low=0.002, high=80.0, rho=7):
    i = torch.arange(steps, dtype=torch.float64)
    roots = high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))
    return torch.cat([roots**rho, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_the_grid_is_theirs(steps):
    times = edm.grid(Precond(), steps).times
    assert np.allclose(times, their_levels(steps).numpy(), rtol=1e-13)
    assert times[0] == 80.0


def test_the_grid_keeps_to_what_the_network_supports():
    net = Precond()
    net.sigma_min, net.sigma_max = 0.02, 50.0
    times = edm.grid(net, 6).times
    assert np.allclose(times, their_levels(6, 0.02, 50.0).numpy(), rtol=1e-13)
    assert edm.denoiser(net).schedule.T == 50.0


def test_the_grid_holds_levels_that_the_network_rounds_to():
    net = Precond()
    table = torch.linspace(0.1, 60.0, 20, dtype=torch.float64)
    net.sigma_max = 60.0
    net.round_sigma = lambda sigma: table[(sigma[:, None] - table).abs().argmin(1)]
    times = edm.grid(net, 12).times
    assert set(times[:-1].tolist()) <= set(table.tolist())
    assert times[0] == 60.0
    assert len(times) < 13  # small levels round to one


def test_a_first_level_that_rounds_up_is_within_the_schedule():
    net = Precond()
    net.round_sigma = lambda sigma: torch.as_tensor(sigma).clamp(min=0.5).ceil()
    grid = edm.grid(net, 3, sigma_max=9.5)
    assert grid.times[0] == edm.denoiser(net, sigma_max=9.5).schedule.T == 10.0


@pytest.mark.parametrize("labels", [False, True])
def test_euler_is_theirs(labels):
    net = Precond()
    denoiser = edm.denoiser(net)
    assert denoiser.shape == (3, 4, 4)
    grid = edm.grid(net, 7)
    one_hot = torch.eye(5)[[1, 3]]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    cond = {"class_labels": one_hot} if labels else None
    ours = fs.sample(denoiser, grid, method="ddim", start=latents * 80.0, cond=cond, dtype=None)
    levels = their_levels(7)
    x = latents * levels[0]
    with torch.no_grad():
        for t, s in pairwise(levels):
            x0 = net(x, t.reshape(1), one_hot if labels else None).double()
            x = x + (s - t) * (x - x0) / t
    # The network rounds x to float32, which is 2^-24 of 200 at the first levels.
    assert ours.dtype == torch.float64
    assert (ours - x).abs().max() < 1e-4
    assert not torch.equal(ours, latents)


def test_the_network_is_told_its_level():
    net = Precond()
    grid = edm.grid(net, 4)
    fs.sample(edm.denoiser(net), grid, seed=0, method="dpm++")
    assert [float(t[0]) for t in net.told] == grid.times[:-1].astype(np.float32).tolist()


def test_the_published_list_of_their_model_fits_it():
    denoiser, plan = edm.denoiser(Precond()), fs.plans.load("gits-cifar10")
    assert plan.schedule == denoiser.schedule == fs.NoiseSchedule.exploding(80.0)
    x = fs.sample(denoiser, plan, num_samples=2, seed=0)
    assert torch.equal(
        x, fs.sample(denoiser, fs.Grid(plan.nodes), num_samples=2, seed=0, method="dpm++")
    )
    other = edm.denoiser(Precond(), sigma_max=90.0)
    with pytest.raises(ValueError, match=r"load\(.gits-cifar10., schedule=denoiser.schedule\)"):
        fs.sample(other, plan)
    fitting = fs.plans.load("gits-cifar10", schedule=other.schedule)
    assert np.array_equal(fitting.nodes, plan.nodes)
    fs.sample(other, fitting, num_samples=2, seed=0)


def test_tuning_takes_it():
    plan = fs.tune(edm.denoiser(Precond(), sigma_max=20.0), 2, samples=16)
    assert plan.calls == 2
    assert 0.0 < plan.nodes[0] <= 20.0


@refusals(
    edm={
        "not callable": (lambda: edm.denoiser(3), TypeError, "net must be callable, got int"),
        "no shape": (lambda: edm.denoiser(lambda x, s: x), ValueError, "shape must be given for"),
        "level": (lambda: edm.denoiser(Precond(), sigma_max="80"), TypeError, "sigma_max must be"),
        "negative": (
            lambda: edm.denoiser(Precond(), sigma_max=-1.0),
            ValueError,
            "^edm.denoiser: sigma_max must be positive",
        ),
        "steps": (
            lambda: edm.grid(Precond(), 0),
            ValueError,
            "^edm.grid: steps must be at least 1",
        ),
        "net first": (
            lambda: edm.grid(18, Precond()),
            TypeError,
            "^edm.grid: steps must be an integer, got Precond",
        ),
        "rho": (lambda: edm.grid(Precond(), 3, rho="x"), TypeError, "^edm.grid: rho must be"),
        "order": (
            lambda: edm.grid(Precond(), 3, sigma_min=90.0),
            ValueError,
            "sigma_max must be above sigma_min",
        ),
    }
)
def test_bad_input_gets_one_line(call, error, match):
    check_refusal(call, error, match)
