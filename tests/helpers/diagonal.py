"""Gaussian data of diagonal covariance: its Bayes-optimal network and that network's errors."""

from __future__ import annotations

import numpy as np
import torch

import fastsample as fs
from fastsample.profiling.statistics import Settings, empty_sums, learned_nodes
from tests.helpers.stored import stored

DATA = stored("elbo_dp")


class Diagonal:
    """Data from N(0, diag(s2)) under a schedule of whole steps, variance preserving.

    Args:
        schedule: the noise levels.
        s2: `(D,)` variances.
    """

    def __init__(self, schedule: fs.NoiseSchedule, s2) -> None:
        self.schedule, self.s2 = schedule, np.array(s2)

    def network(self, x, index):
        """Epsilon as the posterior mean has it; told the 0-based index."""
        alpha, sigma = self.schedule.levels(index.double().numpy() + 1.0)
        share = sigma[:, None] / (alpha[:, None] ** 2 * self.s2 + sigma[:, None] ** 2)
        return x * torch.from_numpy(share).to(x.dtype)

    def denoiser(self, **options) -> fs.Denoiser:
        network = options.pop("network", self.network)
        return fs.Denoiser(network, self.schedule, (len(self.s2),), **options)

    def samples(self, count: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(count, len(self.s2), generator=generator, dtype=torch.float64)
        return (z * torch.from_numpy(self.s2).sqrt()).float()

    def levels(self, times) -> tuple[np.ndarray, np.ndarray]:
        """(alpha_bar, 1 - alpha_bar), each `(n, 1)`."""
        alpha, sigma = self.schedule.levels(times)
        return alpha[:, None] ** 2, sigma[:, None] ** 2

    def errors(self, times) -> np.ndarray:
        """`(n, D)` ``E (x0 - x0hat)^2`` of each dimension."""
        alpha_bar, noise = self.levels(times)
        return self.s2 * noise / (alpha_bar * self.s2 + noise)

    def eps_squares(self, times) -> np.ndarray:
        """`(n, D)` ``E eps_theta^2`` of each dimension."""
        alpha_bar, noise = self.levels(times)
        return noise / (alpha_bar * self.s2 + noise)

    def profile(self, v=None, nodes: int = 24) -> fs.Profile:
        """The profile of infinitely many samples at all whole times, for continuous data.

        Args:
            v: `(T, D)` learned variances in [0, 1], or None.
            nodes: for them.
        """
        times = np.arange(1.0, self.schedule.T + 1.0)
        kind = "small" if v is None else "learned_range"
        settings = Settings("epsilon", kind, (-np.inf, np.inf), None, 0 if v is None else nodes, 0)
        error, eps = self.errors(times), self.eps_squares(times)
        found = {"error": error.sum(1), "error_square": error.sum(1) ** 2}
        found |= {"eps_square": eps.sum(1), "x0_square": np.array(self.s2.sum())}
        if v is not None:
            a = learned_nodes(self.schedule, times, nodes)[:, :, None] * np.asarray(v)[:, None, :]
            found["v"] = np.sum(v, axis=1)
            found["excess"] = excess(a).sum(2)
            found["weighted"] = (error[:, None, :] * np.exp(-a)).sum(2)
        sums = {**empty_sums(self.schedule, times, settings), **found}
        return fs.Profile(self.schedule, (len(self.s2),), times, settings, 1, sums)


def excess(x: np.ndarray) -> np.ndarray:
    """``e^-x - 1 + x`` as ``x^2`` times the integral of ``(1 - u) e^(-x u)``: no cancellation."""
    points, weights = np.polynomial.legendre.leggauss(24)
    u, w = 0.5 * (points + 1.0), 0.5 * weights
    return x**2 * (np.exp(-x[..., None] * u) @ (w * (1.0 - u)))


def golden(name: str) -> tuple[dict, Diagonal]:
    """A Gaussian case of the golden file."""
    case = DATA[name]
    return case, Diagonal(fs.NoiseSchedule.from_betas(case["betas"]), case["s2"])


SMALL = golden("gauss_T20")[1]
"""Twenty times, six dimensions."""
