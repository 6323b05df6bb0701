"""The sampling loops of improved- and guided-diffusion in float64, from their formulas.

Nichol and Dhariwal 2021 (arXiv:2102.09672); Dhariwal and Nichol 2021 (arXiv:2105.05233). Steps are
counted as there, from 0. Nothing here uses the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def named_betas(name: str, T: int) -> np.ndarray:
    """Linear betas between 0.1 / T and 20 / T, or the cosine schedule's."""
    if name == "linear":
        return np.linspace(0.1 / T, 20 / T, T)
    levels = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    return np.array([min(1 - levels[i + 1] / levels[i], 0.999) for i in range(T)])


def kept(T: int, respacing: str) -> list[int]:
    """The steps that a `timestep_respacing` keeps, lowest first."""
    if respacing.startswith("ddim"):
        count = int(respacing[4:])
        return next(list(range(0, T, s)) for s in range(1, T) if -(-T // s) == count)
    counts = [int(part) for part in respacing.split(",")]
    steps, start = [], 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (i < T % len(counts))
        position = 0.0
        for _ in range(count):
            steps.append(start + round(position))
            position += (size - 1) / (count - 1)
        start += size
    return steps


class Loop:
    """One respaced chain: `ancestral` and `ddim`, with or without the gradient of a classifier."""

    def __init__(
        self,
        betas: np.ndarray,
        steps: Sequence[int],
        *,
        variance: str,
        predict_xstart: bool,
        rescale: bool,
        clip: bool,
    ) -> None:
        self.steps = list(steps)
        self.abar = np.cumprod(1 - betas)[self.steps]
        self.before = np.append(1.0, self.abar[:-1])
        self.beta = 1 - self.abar / self.before
        self.posterior = self.beta * (1 - self.before) / (1 - self.abar)
        self.variance, self.predict_xstart, self.clip = variance, predict_xstart, clip
        self.scale = 1000 / len(betas) if rescale else None

    def timestep(self, k: int, batch: int) -> Tensor:
        step = torch.full((batch,), self.steps[k])
        return step if self.scale is None else step.double() * self.scale

    def p(self, model: Callable[..., Tensor], x: Tensor, k: int, cond: dict[str, Any]):
        """(x0, log variance) of step k."""
        output = model(x, self.timestep(k, len(x)), **cond)
        small = math.log(self.posterior[max(k, 1)])
        large = self.beta[k]
        if self.variance == "learned_range":
            output, v = output.chunk(2, dim=1)
            share = (v + 1) / 2
            log = share * math.log(large) + (1 - share) * small
        elif self.variance == "large":
            log = torch.tensor(small if k == 0 else math.log(large), dtype=torch.float64)
        else:  # the variance itself is 0 at k = 0; its logarithm is that of k = 1
            log = torch.tensor(small if k else -math.inf, dtype=torch.float64)
        a = self.abar[k]
        x0 = output if self.predict_xstart else (x - math.sqrt(1 - a) * output) / math.sqrt(a)
        return (x0.clamp(-1, 1) if self.clip else x0), log

    @torch.no_grad()
    def ancestral(self, model, x, noise, cond, cond_fn=None) -> Tensor:
        for row, k in enumerate(reversed(range(len(self.steps)))):
            x0, log = self.p(model, x, k, cond)
            a, b, beta = self.abar[k], self.before[k], self.beta[k]
            mean = (math.sqrt(b) * beta * x0 + math.sqrt(1 - beta) * (1 - b) * x) / (1 - a)
            if cond_fn:
                mean = mean + log.exp() * cond_fn(x, self.timestep(k, len(x)), **cond)
            x = mean + (0.5 * log).exp() * noise[row] if k else mean
        return x

    @torch.no_grad()
    def ddim(self, model, x, noise, cond, eta, cond_fn=None) -> Tensor:
        for row, k in enumerate(reversed(range(len(self.steps)))):
            x0, _ = self.p(model, x, k, cond)
            a, b = self.abar[k], self.before[k]
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
            if cond_fn:
                eps = eps - math.sqrt(1 - a) * cond_fn(x, self.timestep(k, len(x)), **cond)
                x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            # For eta = 1 the difference under the root cancels: it is 1 - b times 1 - the ratio.
            ratio = eta**2 * (1 - a / b) / (1 - a)
            keep, sigma = math.sqrt((1 - b) * (1 - ratio)), math.sqrt((1 - b) * ratio)
            x = math.sqrt(b) * x0 + keep * eps
            x = x + sigma * noise[row] if k else x
        return x


class TinyNet(nn.Module):
    """A network with the interface of their UNetModel that depends on x, t, channels and y."""

    def __init__(self, learn_sigma: bool = False, channels: int = 3, classes: int | None = 4):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.mix = nn.Parameter(0.3 * torch.randn(channels, channels, generator=generator))
        self.scale = nn.Parameter(torch.ones(1))
        self.in_channels, self.num_classes = channels, classes
        self.out_channels = channels * (1 + learn_sigma)
        self.eval()

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        assert (y is not None) == (self.num_classes is not None), (
            "y if and only if there are classes"
        )
        t = timesteps.to(x.dtype)[:, None, None, None]
        e = torch.einsum("bchw,cd->bdhw", torch.tanh(x), self.mix)
        e = self.scale * (e + 0.6 * x * torch.cos(t / 700))
        if y is not None:
            e = e + 0.1 * y.to(x.dtype)[:, None, None, None]
        if self.out_channels == self.in_channels:
            return e
        return torch.cat((e, torch.sin(x + t / 300)), dim=1)
