"""Latents of a closed form: a Gaussian mixture in a range that no image has, and its network."""

from __future__ import annotations

import torch
from torch import Tensor

import fastsample as fs

SCHEDULE = fs.NoiseSchedule.scaled_linear(1000, 0.00085, 0.012)
"""Stable Diffusion's."""


class Latents:
    """Five narrow modes around `centre`, `scale` apart in every element.

    Args:
        scale: deviation of the modes' means; 1.5 gives values up to about 5 on either side.
        centre: mean of all latents, which scaled latents need not have at 0.
        shape: of one sample.
    """

    def __init__(self, scale: float = 1.5, centre: float = 0.0, shape=(4, 8, 8)) -> None:
        generator = torch.Generator().manual_seed(5)
        self.shape, self.deviation = shape, 0.3 * scale
        means = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
        self.means = centre + scale * means

    def samples(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        mode = torch.randint(5, (count,), generator=generator)
        noise = torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)
        return (self.means[mode] + self.deviation * noise).float()

    def estimate(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x], in the dtype of x."""
        variance = (alpha * self.deviation) ** 2 + sigma**2
        means = self.means.to(x)
        away = x[:, None] - alpha * means
        share = torch.softmax(-away.flatten(2).square().sum(2) / (2.0 * variance), dim=1)
        residual = (share.reshape(*share.shape, *[1] * len(self.shape)) * away).sum(1) / variance
        nearest = torch.einsum("bk,k...->b...", share, means)
        return nearest + alpha * self.deviation**2 * residual

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """Epsilon, told the 0-based index of one time."""
        alpha, sigma = (float(level) for level in SCHEDULE.levels(float(t[0]) + 1.0))
        return (x - alpha * self.estimate(x, alpha, sigma)) / sigma

    def denoiser(self, **options) -> fs.Denoiser:
        return fs.Denoiser(self.network, SCHEDULE, self.shape, **options)


RANGES = {"centred": Latents(), "shifted": Latents(1.0, -1.5)}
"""Values up to 6 on either side of zero, and mostly on one."""
