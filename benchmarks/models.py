"""The models of the quality benchmark: Gaussian mixtures with their exact noise, and the digits."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastsample as fs

TUNED = 4096  # starting noises to tune a mixture's plans with
PROFILED = 256  # samples and trajectories of a mixture's profile


def generator(purpose: str, seed: int) -> torch.Generator:
    """A generator for one purpose: equal seeds for two purposes would give equal numbers."""
    return torch.Generator().manual_seed(zlib.crc32(purpose.encode()) + seed)


class Mixture:
    """A Gaussian mixture, whose diffused densities and scores are known in closed form.

    A trained network has errors that hide those of a sampler; this exact prediction has none.
    ``x_t = alpha x0 + sigma eps`` is a mixture again, with means ``alpha mu`` and variances ``v =
    alpha^2 s^2 + sigma^2``, and ``E[eps | x_t] = -sigma grad log p_t(x_t)``.

    Args:
        means: `(M, D)`.
        variances: variances of each coordinate, `(M, D)` or `(M, 1)`.
        weights: `(M,)`, positive; they are divided by their sum.
    """

    def __init__(
        self, means: npt.ArrayLike, variances: npt.ArrayLike, weights: npt.ArrayLike
    ) -> None:
        self.means = torch.as_tensor(np.asarray(means, dtype=np.float64))
        spread = torch.as_tensor(np.asarray(variances, dtype=np.float64))
        self.variances = spread.expand_as(self.means)
        shares = torch.as_tensor(np.asarray(weights, dtype=np.float64))
        self.weights = shares / shares.sum()

    @property
    def dim(self) -> int:
        """D, the number of coordinates."""
        return self.means.shape[1]

    def sample(self, count: int, source: torch.Generator, *, even: bool = False) -> Tensor:
        """Exact samples ``(count, D)``, float32.

        Args:
            count: number of samples.
            source: source of the random numbers.
            even: whether each mode gets its expected number of samples, rounded, instead of a
                random one. As a reference this is less noisy.
        """
        if even:
            ends = (self.weights.cumsum(0) * count).round().long()
            which = torch.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))
        else:
            which = torch.multinomial(self.weights, count, replacement=True, generator=source)
        z = torch.randn(count, self.dim, dtype=torch.float64, generator=source)
        return (self.means[which] + self.variances[which].sqrt() * z).float()

    def log_density(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Log density of x_t ``(B,)``."""
        return self._joint(x.double(), alpha, sigma)[0].logsumexp(1)

    def epsilon(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """``E[eps | x_t = x]`` in float64, returned in the dtype of `x`."""
        wide = x.double()
        joint, precision, pulled = self._joint(wide, alpha, sigma)
        share = joint.softmax(1)
        return (sigma * (wide * (share @ precision) - share @ pulled)).to(x.dtype)

    def _joint(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log of weight times density ``(B, M)``; ``1 / v`` and ``alpha mu / v`` ``(M, D)``."""
        precision = 1.0 / (alpha**2 * self.variances + sigma**2)
        centre = alpha * self.means
        pulled = centre * precision
        # The square is expanded into two matrix products; float64 has digits for the cancellation.
        distance = x.square() @ precision.T - 2.0 * x @ pulled.T + (centre * pulled).sum(1)
        constant = self.weights.log() + 0.5 * (precision / (2 * math.pi)).log().sum(1)
        return constant - 0.5 * distance, precision, pulled


class Counted:
    """A network that counts its calls."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self.calls = 0

    def __call__(self, x: Tensor, index: Tensor) -> Any:
        """Call the network."""
        self.calls += 1
        return self.network(x, index)


@dataclass(frozen=True)
class Model:
    """A model of the benchmark, and true samples to compare its samples with.

    Attributes:
        name: short name.
        title: name for headings.
        denoiser: the model, which calls `network`.
        network: the network, which counts its calls.
        data: ``(count, seed) -> (reference, fresh)``: two disjoint sets of true samples; `fresh`
            holds `count`, `reference` at least as many.
        samples: number of samples that makes the noise of the distances small enough.
        labelled: all real data and their labels, to train a classifier on, or None.
        tuned: gives the tuned plan of a number of steps, or None if there is none.
    """

    name: str
    title: str
    denoiser: fs.Denoiser
    network: Counted
    data: Callable[[int, int], tuple[Tensor, Tensor]]
    samples: int
    labelled: tuple[Tensor, Tensor] | None = None
    tuned: Callable[[int], fs.Plan | None] = {}.get


def mixture_model(name: str, title: str, mixture: Mixture, samples: int = 5000) -> Model:
    """The model of a mixture, on the linear schedule of 1000 steps."""
    schedule = fs.NoiseSchedule.linear()

    def exact(x: Tensor, index: Tensor) -> Tensor:
        # All samples of a call have the same timestep, which may be fractional.
        alpha, sigma = schedule.levels(min(float(index.reshape(-1)[0]) + 1.0, schedule.T))
        return mixture.epsilon(x, float(alpha), float(sigma))

    def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
        source = generator("true samples", seed)
        return mixture.sample(count, source, even=True), mixture.sample(count, source)

    network = Counted(exact)
    denoiser = fs.Denoiser(network, schedule, (mixture.dim,))
    # The seeds are not those of the benchmark.
    x0 = mixture.sample(PROFILED, generator("profile", 0))
    times = [1, *range(5, 1001, 5)]
    profile = fs.profile(
        denoiser,
        x0,
        times=times,
        bin_width=None,
        trajectories=PROFILED,
        seed=zlib.crc32(b"profile"),
    )
    denoiser, network.calls = denoiser.with_profile(profile), 0

    @lru_cache
    def tuned(steps: int) -> fs.Plan:
        before = network.calls
        plan = fs.tune(denoiser, steps, samples=TUNED, gradient_steps=200, seed=zlib.crc32(b"tune"))
        network.calls = before
        return plan

    return Model(name, title, denoiser, network, data, samples, tuned=tuned)


def ring() -> Model:
    """Eight narrow modes on a circle."""
    angles = np.arange(8) * (math.pi / 4)
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 1.4
    mixture = Mixture(means, np.full((8, 1), 0.1**2), np.ones(8))
    return mixture_model("ring-2", "8 modes on a ring, 2-D", mixture, samples=20_000)


def modes(dim: int, count: int = 10) -> Model:
    """Random modes with unequal weights, and with widths that differ between coordinates."""
    source = np.random.default_rng(dim)
    means = 0.9 * source.standard_normal((count, dim))
    deviations = np.geomspace(0.05, 0.5, count)[:, None] * source.uniform(0.7, 1.3, (count, dim))
    weights = source.uniform(0.5, 2.0, count)
    mixture = Mixture(means, deviations**2, weights)
    return mixture_model(f"modes-{dim}", f"{count} random modes, {dim}-D", mixture)


def digits(*, labels: bool) -> Model:
    """The bundled digits model against scikit-learn's 1797 digits.

    Without labels the noise decides which digits are drawn, and the Frechet distance of a few
    hundred samples mostly measures their proportions: it varies ten times as much over the seeds
    as with labels.

    Args:
        labels: whether sample i has the label ``i % 10``; otherwise no sample has a label.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.from_numpy(loaded.images / 8.0 - 1.0).float().unsqueeze(1)
    bundled = fs.load("digits")

    def labelled(x: Tensor, index: Tensor) -> Tensor:
        return bundled.model(x, index, y=torch.arange(len(x)) % 10)

    network = Counted(labelled if labels else bundled.model)
    denoiser = fs.Denoiser(
        network,
        bundled.schedule,
        bundled.shape,
        prediction=bundled.prediction,
        variance=bundled.variance,
        clip=bundled.clip,
    ).with_profile(bundled.profile)

    def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
        if 2 * count > len(images):
            raise ValueError(
                f"digits: count must be at most {len(images) // 2}, half of the digits, got {count}"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        fresh = order[:count]
        if labels:
            alike = [order[loaded.target[order] == i % 10][i // 10] for i in range(count)]
            fresh = np.array(alike)
        return images[order[~np.isin(order, fresh)]], images[fresh]

    return Model(
        "digits-labels" if labels else "digits",
        f"digits, {'ten labels alike' if labels else 'no labels'}, 8 x 8 pixels",
        denoiser,
        network,
        data,
        samples=120 if labels else 200,
        tuned=bundled.plans.get,
        labelled=(images, torch.from_numpy(loaded.target).long()),
    )


MODELS: dict[str, Callable[[], Model]] = {
    "ring-2": ring,
    "modes-16": lambda: modes(16),
    "modes-64": lambda: modes(64),
    "digits-labels": lambda: digits(labels=True),
    "digits": lambda: digits(labels=False),
}
