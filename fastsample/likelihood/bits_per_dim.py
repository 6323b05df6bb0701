"""Implements `bits_per_dim`, a variational bound on a model's negative log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample import ops
from fastsample._support.checks import FloatArray, check_real
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.batches import (
    batches_of,
    check_bin_width,
    check_data_range,
    check_finite,
    warn_off_bins,
)
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.fit import check_variance
from fastsample.denoiser.wrap import check_denoiser
from fastsample.grids.grid import Grid
from fastsample.likelihood.bound import posterior_table, prior_bits_per_dim, vlb_terms
from fastsample.ops.draws import BITS_PER_DIM_DRAW
from fastsample.plans.rows import Clip, Variance, clip_bounds
from fastsample.sampling.noise import make_identity
from fastsample.sampling.resolve import make_grid


@dataclass(frozen=True)
class BitsPerDim:
    """Holds the variational bound and its terms, as means over the data in `unit` per dimension.

    Attributes:
        total: prior plus the sum of the terms; an upper bound on the negative log-likelihood.
        prior: KL divergence of x at the first time from the normal noise that sampling starts from.
        terms: `(K,)` one term per step, noisiest first; the last one is the decoder's.
        standard_error: standard error of the total over samples.
        grid: the times of the steps.
        count: number of samples.
        unit: "bits", or "nats" for data without bins: their bound is that of a density, which may
            be negative and depends on the unit of the data.
    """

    total: float
    prior: float
    terms: FloatArray
    standard_error: float
    grid: Grid
    count: int
    unit: Literal["bits", "nats"] = "bits"

    @property
    def kl(self) -> float:
        """Return the sum of the KL terms, which are all terms but the decoder's."""
        return float(self.terms[:-1].sum())

    @property
    def decoder(self) -> float:
        """Return the last step's term, the decoder's negative log-likelihood."""
        return float(self.terms[-1])

    def __repr__(self) -> str:
        unit = "" if self.unit == "bits" else f" {self.unit}/dim"
        return (
            f"BitsPerDim({self.total:.4f} +- {self.standard_error:.4f}{unit}: "
            f"prior {self.prior:.4f}, kl {self.kl:.4f}, decoder {self.decoder:.4f}; "
            f"{len(self.grid)} steps, {self.count} samples)"
        )


def bits_per_dim(
    denoiser: Denoiser,
    data: Tensor | Iterable[Tensor],
    steps: int | Grid | Sequence[float] | None = None,
    *,
    variance: Literal["small", "large", "learned_range"] | None = None,
    grid: str = "uniform",
    clip: Clip | Literal["auto"] = "auto",
    bin_width: float | None = 2 / 255,
    decoder_variance: float | None = None,
    cond: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    noise: Tensor | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Compute the variational bound on the bits per dimension of some data under a model.

    Follows `calc_bpd_loop` of improved-diffusion (Nichol and Dhariwal 2021, arXiv:2102.09672) and
    its conventions: the decoder is a discretized Gaussian with the tanh approximation of the normal
    distribution function, and its variance is that of the step before it. Each sample takes one
    network call per step, with fresh noise that is a function of (seed, sample, step): the result
    does not depend on the batches. The sums are float64.

    Data without bins, such as latents, have no bits: with ``bin_width=None`` the decoder is a
    Gaussian density of the same variance, and the bound is in nats per dimension.

    Args:
        denoiser: the model.
        data: samples ``(N, *shape)`` in [-1, 1], on multiples of `bin_width` from -1, or of any
            range without one; or an iterable of such batches, which is read once.
        steps: the number K of steps, or the times, or None for every step of a discrete schedule.
        variance: variance of the reverse steps; None is the model's.
        grid: how K times are spread, as for `sample`; "auto" gives the times of the lowest bound by
            the model's profile.
        clip: range that x0 is clamped to, a bound on |x0| in data units; "auto" is the model's.
        bin_width: distance of neighbouring data levels, in (0, 2]; 2/255 for 8-bit images; None for
            data without bins.
        decoder_variance: variance of the last step, in squared data units; None is the posterior
            variance of the step before it, which needs K >= 2.
        cond: keyword arguments for the network, one entry per sample of a `data` tensor.
        batch_size: samples per network call, for a `data` tensor.
        seed: 64-bit seed of the noise.
        noise: the noise of the steps ``(K, N, *shape)`` instead of generated noise.
        progress: show a progress bar.

    Returns:
        The bound and its parts, in bits per dimension; in nats without bins.

    Raises:
        TypeError: data that are no floating tensors.
        ValueError: no data, values outside [-1, 1] with a `bin_width`, a network that returns NaN
            (the message names the time), or arguments out of range.
    """
    name = "bits_per_dim"
    check_denoiser(name, denoiser)
    schedule = denoiser.schedule
    if steps is None and schedule.num_steps is None:
        raise ValueError(f"{name}: steps must be given for {schedule!r}, got None")
    reverse_variance = denoiser.variance if variance is None else variance
    _check_variance_name(name, reverse_variance)
    check_variance(name, denoiser, reverse_variance)
    times, _ = make_grid(
        name,
        denoiser,
        schedule.num_steps if steps is None else steps,
        grid,
        objective="elbo",
        variance=reverse_variance,
        decoder="respaced" if decoder_variance is None else "optimal",
    )
    bounds = clip_bounds(name, denoiser.clip_for(clip))
    if bounds[0] != -bounds[1]:
        raise ValueError(f"{name}: clip must be symmetric, got {bounds}")
    bound = None if math.isinf(bounds[1]) else bounds[1]
    width = None if bin_width is None else check_bin_width(name, bin_width)
    if decoder_variance is not None:
        decoder_variance = check_real(name, "decoder_variance", decoder_variance)
        if decoder_variance <= 0.0:
            raise ValueError(f"{name}: decoder_variance must be positive, got {decoder_variance:g}")
    elif len(times) == 1:
        raise ValueError(
            f"{name}: steps must be at least 2, got 1; a single step needs decoder_variance"
        )
    num_samples = len(data) if isinstance(data, Tensor) and data.dim() else None
    conditions = Conditions(name, cond, batch=num_samples)
    if noise is not None and (noise.dim() < 2 or noise.shape[0] != len(times)):
        raise ValueError(
            f"{name}: noise must have shape ({len(times)}, N, *shape), got {tuple(noise.shape)}"
        )
    table = torch.as_tensor(
        posterior_table(
            schedule,
            times.times,
            prediction=denoiser.prediction,
            decoder_variance=decoder_variance,
        ),
        device=denoiser.device,
    )
    model = AtTimes(denoiser, times.times[:-1], function=name)

    sums = torch.zeros(len(times), dtype=torch.float64, device="cpu")
    squares, prior, count = 0.0, 0.0, 0
    with torch.inference_mode(), tqdm(disable=not progress, desc=name, unit="call") as bar:
        for x0 in batches_of(name, denoiser, data, batch_size):
            _check_data(name, x0, width, first=count == 0)
            batch = x0.shape[0]
            batch_conditions = conditions.part(count, x0)
            identity = make_identity(name, seed, count, batch, x0.device)
            x0_wide = x0.double()
            terms = torch.empty(len(times), batch, dtype=torch.float64, device="cpu")
            for k in range(len(times)):
                if noise is None:
                    eps = ops.noise(
                        *identity, denoiser.shape, draw=BITS_PER_DIM_DRAW + k, dtype=torch.float64
                    )
                else:
                    eps = noise[k, count : count + batch].to(x0_wide)
                    check_tensor("noise", eps, tuple(x0_wide.shape), eps.dtype, eps.device, name)
                x_t = table[k, 0] * x0_wide + table[k, 1] * eps
                output, _ = model.output(x_t.to(x0.dtype), k, batch_conditions)
                terms[k], _ = vlb_terms(
                    output.double(),
                    x0_wide,
                    x_t,
                    table[k].expand(batch, -1),
                    variance=reverse_variance,
                    clip=bound,
                    bin_width=width,
                )
                bar.update()
            if not torch.isfinite(terms).all():
                k = int((~torch.isfinite(terms)).any(1).nonzero()[0])
                raise ValueError(
                    f"{name}: the model's output must be finite, got NaN or infinity at "
                    f"t = {times.times[k]:g}"
                )
            prior_terms = prior_bits_per_dim(schedule, x0_wide, float(times.times[0])).cpu()
            sums += terms.sum(1)
            squares += float((terms.sum(0) + prior_terms).square().sum())
            prior += float(prior_terms.sum())
            count += batch
    if count == 0:
        raise ValueError(f"{name}: data must hold at least one sample, got none")
    conditions.check_count(count)
    if noise is not None and noise.shape[1] != count:
        raise ValueError(f"{name}: noise must be for {count} samples, got {noise.shape[1]}")
    means = (sums / count).numpy()
    total = prior / count + float(means.sum())
    error = math.sqrt(max(squares / count - total**2, 0.0) / max(count - 1, 1))
    if width is not None:
        return BitsPerDim(total, prior / count, means, error, times, count)
    nats = math.log(2.0)
    return BitsPerDim(
        nats * total, nats * prior / count, nats * means, nats * error, times, count, "nats"
    )


def _check_data(function: str, x0: Tensor, width: float | None, *, first: bool) -> None:
    """Raise ValueError for data outside of the bins, or without bins for data not finite."""
    if width is None:
        check_finite(function, x0)
        return
    remedy = "; latents and other data without bins need bin_width=None, for a bound in nats"
    check_data_range(function, x0, remedy)
    if first:
        warn_off_bins(function, x0, width)


def _check_variance_name(function: str, variance: Any) -> None:
    """Raise ValueError for an unknown reverse variance."""
    if not isinstance(variance, str) or variance not in get_args(Variance):
        raise ValueError(
            f"{function}: variance must be one of {get_args(Variance)}, got {variance!r}"
        )
