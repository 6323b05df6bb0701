"""Bits per dimension: the variational bound on a model's negative log-likelihood, on any times."""

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
from fastsample.denoiser.batches import batches_of, check_bin_width, check_data_range
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.fit import check_variance
from fastsample.grids.grid import Grid
from fastsample.likelihood.bound import posterior_table, prior_bits_per_dim, vlb_terms
from fastsample.plans.rows import Clip, Variance, clip_bounds
from fastsample.sampling.noise import make_identity
from fastsample.sampling.resolve import make_grid


@dataclass(frozen=True)
class BitsPerDim:
    """The bound and its parts, in bits per dimension, means over the data.

    Attributes:
        total: prior + the sum of the terms; an upper bound on the negative log-likelihood.
        prior: KL divergence of x at the first time from the normal distribution.
        terms: `(K,)` one per step, noisiest first; the last one is the decoder's.
        standard_error: of the total, over samples.
        grid: the times.
        count: samples seen.
    """

    total: float
    prior: float
    terms: FloatArray
    standard_error: float
    grid: Grid
    count: int

    @property
    def kl(self) -> float:
        """Sum of the KL terms."""
        return float(self.terms[:-1].sum())

    @property
    def decoder(self) -> float:
        """The last step's term: the decoder's negative log-likelihood."""
        return float(self.terms[-1])

    def __repr__(self) -> str:
        return (
            f"BitsPerDim({self.total:.4f} +- {self.standard_error:.4f}: prior {self.prior:.4f}, "
            f"kl {self.kl:.4f}, decoder {self.decoder:.4f}; {len(self.grid)} steps, "
            f"{self.count} samples)"
        )


def bits_per_dim(
    denoiser: Denoiser,
    data: Tensor | Iterable[Tensor],
    steps: int | Grid | Sequence[float] | None = None,
    *,
    variance: Literal["small", "large", "learned_range"] | None = None,
    grid: str = "uniform",
    clip: Clip | Literal["auto"] = "auto",
    bin_width: float = 2 / 255,
    decoder_variance: float | None = None,
    cond: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    noise: Tensor | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Bound on the bits per dimension that a model needs for some data.

    `calc_bpd_loop` of improved-diffusion (Nichol and Dhariwal 2021, arXiv:2102.09672) with its
    conventions: the decoder is a discretized Gaussian with the tanh approximation of the normal
    distribution function, and its variance is that of the step before it. One network call per
    sample and step, with fresh noise that belongs to the sample: the result does not depend on the
    batches. The sums are float64.

    Args:
        denoiser: the model.
        data: samples ``(N, *shape)`` in [-1, 1], on multiples of `bin_width` from -1; or an
            iterable of such batches, which is gone through once.
        steps: K, or the times, or None for every step of a discrete schedule.
        variance: of the reverse steps; None is the model's own.
        grid: how K times are spread, as for `sample`; "auto" are those of the lowest bound for the
            model's profile.
        clip: range x0 is held in; "auto" is the model's own.
        bin_width: distance of neighbouring data levels: 2/255 for 8-bit images.
        decoder_variance: of the last step, in squared data units; None is the posterior variance of
            the step before it, which needs K >= 2.
        cond: keyword arguments for the network, one entry per sample of a `data` tensor.
        batch_size: samples per network call, for a `data` tensor.
        seed: of the noise.
        noise: the steps' noise ``(K, N, *shape)`` instead of generated noise.
        progress: show a progress bar.

    Raises:
        TypeError: data that are no floating tensors.
        ValueError: no data, values outside [-1, 1], a network that returns NaN (the message names
            the time), or arguments out of range.
    """
    name = "bits_per_dim"
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"{name}: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    schedule = denoiser.schedule
    if steps is None and schedule.num_steps is None:
        raise ValueError(f"{name}: steps must be given for {schedule!r}, got None")
    used = denoiser.variance if variance is None else variance
    if not isinstance(used, str) or used not in get_args(Variance):
        raise ValueError(f"{name}: variance must be one of {get_args(Variance)}, got {used!r}")
    check_variance(name, denoiser, used)
    times, _ = make_grid(
        name,
        denoiser,
        schedule.num_steps if steps is None else steps,
        grid,
        objective="elbo",
        variance=used,
        decoder="respaced" if decoder_variance is None else "optimal",
    )
    bounds = clip_bounds(name, denoiser.clip_for(clip))
    if bounds[0] != -bounds[1]:
        raise ValueError(f"{name}: clip must be symmetric, got {bounds}")
    bound = None if math.isinf(bounds[1]) else bounds[1]
    width = check_bin_width(name, bin_width)
    if decoder_variance is not None:
        decoder_variance = check_real(name, "decoder_variance", decoder_variance)
    given = len(data) if isinstance(data, Tensor) and data.dim() else None
    conditions = Conditions(name, cond, batch=given)
    if noise is not None and (noise.dim() < 2 or noise.shape[0] != len(times)):
        raise ValueError(
            f"{name}: noise must have shape ({len(times)}, N, *shape), got {tuple(noise.shape)}"
        )
    table = torch.from_numpy(
        posterior_table(
            schedule,
            times.times,
            prediction=denoiser.prediction,
            decoder_variance=decoder_variance,
        )
    ).to(denoiser.device)
    model = AtTimes(denoiser, times.times[:-1], function=name)

    sums, squares, prior, seen = torch.zeros(len(times), dtype=torch.float64), 0.0, 0.0, 0
    with torch.inference_mode(), tqdm(disable=not progress, desc=name, unit="call") as bar:
        for x0 in batches_of(name, denoiser, data, batch_size):
            check_data_range(name, x0)
            batch = x0.shape[0]
            here = conditions.part(seen, x0)
            identity = make_identity(name, seed, seen, batch, x0.device)
            exact = x0.double()
            terms = torch.empty(len(times), batch, dtype=torch.float64)
            for k in range(len(times)):
                if noise is None:
                    eps = ops.noise(*identity, denoiser.shape, draw=k, dtype=torch.float64)
                else:
                    eps = noise[k, seen : seen + batch].to(exact)
                    check_tensor("noise", eps, tuple(exact.shape), eps.dtype, eps.device, name)
                x_t = table[k, 0] * exact + table[k, 1] * eps
                output, _ = model.output(x_t.to(x0.dtype), k, here)
                terms[k], _ = vlb_terms(
                    output.double(),
                    exact,
                    x_t,
                    table[k].expand(batch, -1),
                    variance=used,
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
            first = prior_bits_per_dim(schedule, exact, float(times.times[0])).cpu()
            sums += terms.sum(1)
            squares += float((terms.sum(0) + first).square().sum())
            prior += float(first.sum())
            seen += batch
    if seen == 0:
        raise ValueError(f"{name}: data must hold at least one sample, got none")
    conditions.check_count(seen)
    if noise is not None and noise.shape[1] != seen:
        raise ValueError(f"{name}: noise must be for {seen} samples, got {noise.shape[1]}")
    means = (sums / seen).numpy()
    total = prior / seen + float(means.sum())
    spread = max(squares / seen - total**2, 0.0) / max(seen - 1, 1)
    return BitsPerDim(total, prior / seen, means, math.sqrt(spread), times, seen)
