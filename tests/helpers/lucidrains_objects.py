"""Objects with the attributes of denoising-diffusion-pytorch, and its loops in float64.

The objects hold what a live `GaussianDiffusion` or `ElucidatedDiffusion` does: tables in float32.
The loops are written from the formulas of DDPM (arXiv:2006.11239), DDIM (arXiv:2010.02502) and EDM
(arXiv:2206.00364) and use none of it but the network. Steps are counted from 0.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn


def named_betas(name: str, T: int) -> np.ndarray:
    """The three schedules in float64; "sigmoid" has end points rounded to float32."""
    if name == "linear":
        return np.linspace(0.1 / T, 20 / T, T)
    u = np.arange(T + 1) / T
    if name == "cosine":
        level = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        low, high = (torch.tensor(v).sigmoid().item() for v in (-3.0, 3.0))
        level = (high - 1 / (1 + np.exp(3 - 6 * u))) / (high - low)
    return np.minimum(1 - level[1:] / level[:-1], 0.999)


class Net(nn.Module):
    """A network that depends on x, t and, if it conditions on itself, on its last x0."""

    def __init__(self, self_condition: bool = False, channels: int = 3, out_dim: int | None = None):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        mix = 0.3 * torch.randn(channels, channels, generator=generator)
        self.mix = nn.Parameter(mix)
        self.channels, self.self_condition = channels, self_condition
        self.out_dim = out_dim or channels
        self.eval()

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        t = time.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        out = torch.einsum("bc...,cd->bd...", torch.tanh(x), self.mix) + 0.5 * x * torch.cos(
            t / 700
        )
        if self.self_condition and x_self_cond is not None:
            out = out + 0.3 * torch.sin(2 * x_self_cond)
        return out if self.out_dim == self.channels else torch.cat((out, torch.sin(x + t)), dim=1)


class GaussianDiffusion(nn.Module):
    """The attributes of a `GaussianDiffusion`."""

    def __init__(self, model: nn.Module, betas, objective="pred_noise", image_size=(4, 4)):
        super().__init__()
        self.model, self.objective = model, objective
        self.channels, self.self_condition = model.channels, model.self_condition
        self.image_size = image_size
        self.num_timesteps = self.sampling_timesteps = len(betas)
        self.register_buffer("betas", torch.as_tensor(betas).to(torch.float32))
        self.eval()


class ElucidatedDiffusion(nn.Module):
    """The attributes and the preconditioned network of an `ElucidatedDiffusion`: EDM, table 1."""

    def __init__(self, net: nn.Module, num_sample_steps: int = 32):
        super().__init__()
        self.net, self.self_condition = net, net.self_condition
        self.channels, self.image_size = net.channels, 4
        self.sigma_min, self.sigma_max, self.sigma_data, self.rho = 0.002, 80, 0.5, 7
        self.num_sample_steps = num_sample_steps
        self.eval()

    def preconditioned_network_forward(self, x, sigma, self_cond=None, clamp=False):
        s = sigma.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        total = s**2 + self.sigma_data**2
        out = self.net(x / total.sqrt(), sigma.log() / 4, self_cond)
        x0 = self.sigma_data**2 / total * x + s * self.sigma_data / total.sqrt() * out
        return x0.clamp(-1, 1) if clamp else x0


def predicted(objective: str, x: Tensor, out: Tensor, abar: float) -> Tensor:
    """The network's x0, clamped to [-1, 1]."""
    alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
    if objective == "pred_noise":
        out = (x - sigma * out) / alpha
    elif objective == "pred_v":
        out = alpha * x - sigma * out
    return out.clamp(-1, 1)


def pairs(T: int, K: int) -> list[tuple[int, int]]:
    """The steps (from, to) of DDIM; -1 is the data."""
    steps = [int(v) for v in torch.linspace(-1, T - 1, K + 1)][::-1]
    return list(itertools.pairwise(steps))


@torch.no_grad()
def ddim(network, objective, betas, K, x, noise, eta=0.0) -> Tensor:
    """Their `ddim_sample` in [-1, 1]."""
    abar, last = np.append(np.cumprod(1 - betas), 1.0), None  # index -1 is clean data
    for row, (t, s) in enumerate(pairs(len(betas), K)):
        a, b = abar[t], abar[s]
        last = predicted(objective, x, network(x, torch.full((len(x),), t), last), a)
        eps = (x - math.sqrt(a) * last) / math.sqrt(1 - a)
        variance = eta**2 * (1 - a / b) * (1 - b) / (1 - a)
        x = math.sqrt(b) * last + math.sqrt(max(1 - b - variance, 0.0)) * eps
        x = x + math.sqrt(variance) * noise[row]
    return x


@torch.no_grad()
def ancestral(network, objective, betas, x, noise) -> Tensor:
    """Their `p_sample_loop` in [-1, 1]."""
    abar, last = np.append(np.cumprod(1 - betas), 1.0), None
    for row, t in enumerate(reversed(range(len(betas)))):
        a, b, beta = abar[t], abar[t - 1], betas[t]
        last = predicted(objective, x, network(x, torch.full((len(x),), t), last), a)
        x = (math.sqrt(b) * beta * last + math.sqrt(1 - beta) * (1 - b) * x) / (1 - a)
        x = x + math.sqrt(beta * (1 - b) / (1 - a)) * noise[row]
    return x
