"""Makes the targets of the benchmark of defaults: exact mixtures on all schedules, and digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from benchmarks.models import MODELS, Mixture, generator


@dataclass(frozen=True)
class Target:
    """Holds a model, the same model for diffusers, and the noise to start from.

    Attributes:
        name: name in tables.
        denoiser: the model.
        peer: the model on a schedule that diffusers has.
        start: starting noise.
        chosen: whether the candidate was chosen on this target.
        most: the largest number of calls to measure.
    """

    name: str
    denoiser: fs.Denoiser
    peer: fs.Denoiser
    start: Tensor
    chosen: bool = False
    most: int = 50


def random_mixture(dim: int, count: int, seed: int) -> Mixture:
    """Make a mixture of random Gaussians with unequal weights and widths."""
    source = np.random.default_rng(seed)
    means = 0.9 * source.standard_normal((count, dim))
    widths = np.geomspace(0.05, 0.5, count)[:, None] * source.uniform(0.7, 1.3, (count, dim))
    return Mixture(means, widths**2, source.uniform(0.5, 2.0, count))


def exact(
    mixture: Mixture, schedule: fs.NoiseSchedule, prediction: Any, part: Mixture, scale: float
) -> fs.Denoiser:
    """Make the exact model of a mixture, guided at this scale to a part of it."""

    def epsilon(x: Tensor, alpha: float, sigma: float) -> Tensor:
        everything = mixture.epsilon(x, alpha, sigma)
        if scale == 0.0:
            return everything
        return everything + scale * (part.epsilon(x, alpha, sigma) - everything)

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(level) for level in schedule.levels(min(float(t[0]), schedule.T)))
        # At pure noise x0 and flow predictions need a trace of signal, which changes nothing.
        alpha, wide = max(alpha, 1e-5), x.double()
        eps = epsilon(wide, alpha, sigma)
        x0 = (wide - sigma * eps) / alpha
        outputs = {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        return outputs[prediction].to(x.dtype)

    return fs.Denoiser(network, schedule, (mixture.dim,), prediction=prediction, time=np.array)


def mixture_target(
    dim: int, seed: int, schedule: fs.NoiseSchedule, prediction: Any, scale: float = 0.0
) -> Target:
    """Make a target that the candidate was not chosen on."""
    mixture = random_mixture(dim, 8, seed)
    means, variances, weights = (
        values[:3].numpy() for values in (mixture.means, mixture.variances, mixture.weights)
    )
    part = Mixture(means, variances, weights)
    peer = schedule
    if schedule.kind == "vdm":
        peer = fs.NoiseSchedule.from_alpha_bar(schedule.alpha_bar(np.arange(1, 1001) / 1000))
    name = f"{dim}-D, {schedule.kind}, {prediction}" + (f", guided {scale:g}" if scale else "")
    one, other = (exact(mixture, kind, prediction, part, scale) for kind in (schedule, peer))
    count = 1024 if dim < 16 else 512
    return Target(name, one, other, torch.randn(count, dim, generator=generator(name, 1)))


def digits_target(scale: float, count: int = 16) -> Target:
    """Make the digits with labels, guided at this scale."""
    bundled = fs.load("digits")
    y = torch.arange(count) % 10
    none = torch.full_like(y, 10)

    def network(x: Tensor, t: Tensor) -> Tensor:
        both = bundled.model(torch.cat([x, x]), torch.cat([t, t]), y=torch.cat([y, none]))[:, :1]
        given, free = both.chunk(2)
        return free + scale * (given - free)

    denoiser = fs.Denoiser(network, bundled.schedule, bundled.shape, clip=bundled.clip)
    start = torch.randn(count, *bundled.shape, generator=generator("digits", 1))
    return Target(f"digits, guided {scale:g}", denoiser, denoiser, start, most=20)


def targets() -> Iterator[Callable[[], Target]]:
    """Yield functions that make the targets."""
    for name in ("ring-2", "modes-16", "modes-64"):

        def chosen(name: str = name) -> Target:
            model = MODELS[name]().denoiser
            start = torch.randn(1024, *model.shape, generator=generator(name, 1))
            return Target(name, model, model, start, chosen=True)

        yield chosen
    kinds = fs.NoiseSchedule
    for dim, seed, schedule, prediction, scale in (
        (2, 1, kinds.linear(), "epsilon", 0.0),
        (8, 2, kinds.linear(), "v", 0.0),
        (64, 3, kinds.linear(), "epsilon", 0.0),
        (8, 4, kinds.linear(), "epsilon", 1.0),
        (16, 5, kinds.linear(), "epsilon", 4.0),
        (16, 6, kinds.cosine(), "v", 0.0),
        (8, 7, kinds.cosine(), "epsilon", 0.0),
        (8, 8, kinds.scaled_linear(), "epsilon", 0.0),
        (16, 9, kinds.scaled_linear(), "x0", 0.0),
        (2, 10, kinds.flow(), "flow", 0.0),
        (16, 11, kinds.flow(), "flow", 0.0),
        (64, 12, kinds.flow(), "flow", 0.0),
        (8, 13, kinds.vdm(), "epsilon", 0.0),
    ):
        yield lambda a=(dim, seed, schedule, prediction, scale): mixture_target(*a)
    yield lambda: digits_target(1.0)
    yield lambda: digits_target(4.0)
