"""Independent float64 NumPy transcriptions: each paper's own loop, and the plain row executor.

Loops index time as their repositories do, 0-based with abar[-1] = 1. Nothing here uses the package.
Sources: ermongroup/ddim e8df66c, openai/improved-diffusion 1bc7bbb.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Network = Callable[[Array, float], Array]  # (x, 0-based index) -> output

X_T = np.array([1.5, -0.7, 0.3, 2.1, -1.2, 0.05, -2.4, 0.9])


def noise_formula(steps: int) -> Array:
    """The golden files' stand-in for standard normal draws, `(steps, 8)`."""
    return math.sqrt(2) * np.sin(np.arange(1, 8 * steps + 1.0)).reshape(steps, 8)


def execute(plan, network: Callable[[Array, float], Array], x: Array, noise: Array) -> Array:
    """Run a plan row by row; network takes the plan's own time, `(2, ...)` outputs hold [m, v]."""
    x0 = h1 = np.zeros_like(x)
    for k, (row, t) in enumerate(zip(plan.rows.tolist(), plan.times.tolist(), strict=True)):
        p, q, lo, hi, _, a, b, e, c1, c2, d, lv_lo, lv_hi = row
        m = network(x, t)
        sd = d
        if m.ndim > x.ndim:
            m, v = m
            sd = d * np.exp((lv_lo + (v + 1) / 2 * (lv_hi - lv_lo)) / 2)
        h1, h2 = x0, h1
        x0 = np.minimum(np.maximum(p * x + q * m, lo), hi)
        x = a * x + b * x0 + e * m + c1 * h1 + c2 * h2 + sd * noise[k]
    return x


# ---- toy networks of the golden files


def model_a(abar: Array) -> Network:
    """Exact for data from N(0, I)."""
    return lambda x, i: np.sqrt(1 - abar[int(i)]) * x


def model_b(T: int) -> Network:
    """A nonlinear network without clipping: reaches |x| = 180."""
    return lambda x, i: np.tanh(x) * (0.3 + i / T)


def model_a2(T: int) -> Network:
    """Model B with a learned variance."""
    return lambda x, i: np.stack([np.tanh(x) * (0.3 + i / T), np.tanh(0.5 * x)])


# ---- ermongroup/ddim functions/denoising.py


def _levels(betas: Array) -> Callable[[int], float]:
    """`compute_alpha`: beta = 0 is prepended, so index -1 gives 1."""
    table = np.cumprod(1 - np.concatenate(([0.0], betas)))
    return lambda i: float(table[i + 1])


def generalized_steps(
    x: Array, seq: Sequence[int], model: Network, betas: Array, eta: float, noise: Array
) -> Array:
    """DDIM eq. (12); never clips."""
    level = _levels(betas)
    previous = [-1, *seq[:-1]]
    for k, (i, j) in enumerate(zip(reversed(seq), reversed(previous), strict=True)):
        at, at_next = level(i), level(j)
        et = model(x, i)
        x0 = (x - et * math.sqrt(1 - at)) / math.sqrt(at)
        c1 = eta * math.sqrt((1 - at / at_next) * (1 - at_next) / (1 - at))
        c2 = math.sqrt((1 - at_next) - c1**2)
        x = math.sqrt(at_next) * x0 + c1 * noise[k] + c2 * et
    return x


def ddpm_steps(
    x: Array, seq: Sequence[int], model: Network, betas: Array, noise: Array, clip: float | None
) -> Array:
    """The sigma-hat sampler; the repository clips at 1."""
    level = _levels(betas)
    previous = [-1, *seq[:-1]]
    for k, (i, j) in enumerate(zip(reversed(seq), reversed(previous), strict=True)):
        at, atm1 = level(i), level(j)
        beta = 1 - at / atm1
        x0 = math.sqrt(1 / at) * x - math.sqrt(1 / at - 1) * model(x, i)
        x0 = x0 if clip is None else np.clip(x0, -clip, clip)
        mean = (math.sqrt(atm1) * beta * x0 + math.sqrt(1 - beta) * (1 - atm1) * x) / (1 - at)
        x = mean + (i != 0) * math.sqrt(beta) * noise[k]
    return x


# ---- openai/improved-diffusion gaussian_diffusion.py and respace.py


class SpacedDiffusion:
    """`SpacedDiffusion` on the kept indices of a chain with the given betas."""

    def __init__(self, betas: Array, kept: Sequence[int]):
        """Re-derive the betas of the kept steps."""
        abar, last, new = np.cumprod(1 - betas), 1.0, []
        for i in kept:
            new.append(1 - abar[i] / last)
            last = abar[i]
        self.map = list(kept)
        self.betas = np.array(new)
        self.abar = np.cumprod(1 - self.betas)
        self.abar_prev = np.append(1.0, self.abar[:-1])
        self.variance = self.betas * (1 - self.abar_prev) / (1 - self.abar)

    def predict(self, x: Array, k: int, model: Network, clip: bool) -> tuple[Array, Array | None]:
        """(x0, v): `p_mean_variance` up to the posterior."""
        out = model(x, self.map[k])
        eps, v = out if out.ndim > x.ndim else (out, None)
        x0 = math.sqrt(1 / self.abar[k]) * x - math.sqrt(1 / self.abar[k] - 1) * eps
        return (np.clip(x0, -1, 1) if clip else x0), v

    def p_sample_loop(
        self, x: Array, model: Network, noise: Array, clip: bool, variance: str
    ) -> Array:
        """Ancestral sampling."""
        for n, k in enumerate(reversed(range(len(self.map)))):
            x0, v = self.predict(x, k, model, clip)
            coef1 = self.betas[k] * math.sqrt(self.abar_prev[k]) / (1 - self.abar[k])
            coef2 = (1 - self.abar_prev[k]) * math.sqrt(1 - self.betas[k]) / (1 - self.abar[k])
            small = math.log(self.variance[k] or self.variance[1])
            large = math.log(self.betas[k])
            log = {"small": small, "large": large}.get(variance)
            if log is None:
                frac = (v + 1) / 2
                log = frac * large + (1 - frac) * small
            x = coef1 * x0 + coef2 * x + (k != 0) * np.exp(0.5 * log) * noise[n]
        return x

    def ddim_sample_loop(
        self, x: Array, model: Network, noise: Array, clip: bool, eta: float
    ) -> Array:
        """DDIM with eps re-derived from the clipped x0."""
        for n, k in enumerate(reversed(range(len(self.map)))):
            x0, _ = self.predict(x, k, model, clip)
            at, prev = self.abar[k], self.abar_prev[k]
            eps = (math.sqrt(1 / at) * x - x0) / math.sqrt(1 / at - 1)
            sigma = eta * math.sqrt((1 - prev) / (1 - at)) * math.sqrt(1 - at / prev)
            x = x0 * math.sqrt(prev) + math.sqrt(1 - prev - sigma**2) * eps
            x = x + (k != 0) * sigma * noise[n]
        return x

    def ddim_reverse(self, x: Array, model: Network) -> Array:
        """`ddim_reverse_sample` for k = 0..K-2, unclipped: level 0 to level K-1."""
        for k in range(len(self.map) - 1):
            x0, _ = self.predict(x, k, model, clip=False)
            at, following = self.abar[k], self.abar[k + 1]
            eps = (math.sqrt(1 / at) * x - x0) / math.sqrt(1 / at - 1)
            x = x0 * math.sqrt(following) + math.sqrt(1 - following) * eps
        return x


def slerp(z1: Array, z2: Array, weight: float) -> Array:
    """ermongroup/ddim runners/diffusion.py: over the whole flattened tensor."""
    theta = math.acos(float(np.sum(z1 * z2) / (np.linalg.norm(z1) * np.linalg.norm(z2))))
    parts = math.sin((1 - weight) * theta) * z1 + math.sin(weight * theta) * z2
    return parts / math.sin(theta)
