"""Computes the terms of the variational bound of a diffusion model, in plain torch.

Time 0 is the data, and a step goes from `t` down to `s` < `t`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.ops.reference import bin_log_likelihood
from fastsample.planning.decoder import respaced_variance
from fastsample.plans.rows import Prediction, Variance, check_prediction, x0_terms
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition

__all__ = [
    "discretized_gaussian_log_likelihood",
    "gaussian_log_density",
    "normal_kl",
    "posterior_table",
    "prior_bits_per_dim",
    "vlb_terms",
]


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """Return KL(N(mean1, e^log_var1) || N(mean2, e^log_var2)) of each element, in nats.

    Args:
        mean1: mean of the first Gaussian, any shape that broadcasts with the others.
        log_var1: log variance of the first.
        mean2: mean of the second.
        log_var2: log variance of the second.

    Returns:
        The divergence of each element in nats, in the broadcast shape.
    """
    difference = (mean1 - mean2) ** 2 * torch.exp(-log_var2)
    return 0.5 * (torch.exp(log_var1 - log_var2) - 1.0 + log_var2 - log_var1 + difference)


def discretized_gaussian_log_likelihood(
    x: Tensor, mean: Tensor, log_scale: Tensor, *, bin_width: float = 2 / 255
) -> Tensor:
    """Return the log-probability of each element's bin under a Gaussian, in nats.

    This is the decoder of Ho et al. 2020, "Denoising Diffusion Probabilistic Models"
    (arXiv:2006.11239, eq. 13); the first and the last bin reach to infinity. The normal
    distribution function is the tanh approximation of improved-diffusion (arXiv:2102.09672,
    released code), kept because published bits/dim were computed with it; it is off by up to 2e-4
    in probability.

    Args:
        x: data in [-1, 1], on multiples of `bin_width` from -1.
        mean: mean of the Gaussian, the shape of `x`.
        log_scale: log of the standard deviation, any shape that broadcasts with `x`.
        bin_width: distance of neighbouring data levels, in data units: 2/255 for 8-bit images.

    Returns:
        Log-probabilities in nats, in the shape of `x`; never below log(1e-12).
    """
    return bin_log_likelihood(x, mean, log_scale, bin_width)


def gaussian_log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log density of each element under a Gaussian, in nats per unit of the data.

    It is the decoder of data without bins, such as latents. It may be positive.

    Args:
        x: data, any real numbers.
        mean: mean of the Gaussian, the shape of `x`.
        log_scale: log of the standard deviation, any shape that broadcasts with `x`.

    Returns:
        Log densities in nats, in the shape of `x`.
    """
    square = ((x - mean) * torch.exp(-log_scale)) ** 2
    return -0.5 * (square + math.log(2.0 * math.pi)) - log_scale


def posterior_table(
    schedule: NoiseSchedule,
    times: Sequence[float] | FloatArray | None = None,
    *,
    prediction: Prediction = "epsilon",
    decoder_variance: float | None = None,
) -> FloatArray:
    """Return the bound's coefficients at each step from t to s of a list of times, in float64.

    `x0_weight` is the coefficient of x0 in the mean of q(x_s | x_t, x0); the log variances are
    those of arXiv:2102.09672 (eq. 15): `log_small` of the posterior, `log_large` of the forward
    step. The posterior variance of the last step is 0, so one must be chosen. By default both
    variances of that step become the posterior variance of the step before it, as in the
    released code. The upper end `log_range` of a learned range is the forward step's at every step.

    Args:
        schedule: the noise levels.
        times: `(K + 1,)`, strictly decreasing to 0; None means T, T-1, ..., 0.
        prediction: what the network predicts; it determines p and q.
        decoder_variance: variance of the last step, in squared data units; None is the released
            code's choice, which needs K >= 2.

    Returns:
        `(K, 9)`, noisiest step first; columns alpha_t, sigma_t, x0_weight, log_small, log_large,
        log_range, last (1 in the last row, else 0), p, q (``x0 = p x + q m``).

    Raises:
        ValueError: times that do not decrease to 0; None for a schedule without integer steps; a
            single step without `decoder_variance`; or a `decoder_variance` that is not positive.
    """
    if times is None:
        if schedule.num_steps is None:
            raise ValueError(
                f"posterior_table: schedule must have integer steps, got {schedule}; pass times"
            )
        times = np.arange(schedule.num_steps, -1, -1, dtype=np.float64)
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or times[-1] != 0 or not np.all(np.diff(times) < 0):
        raise ValueError(f"posterior_table: times must decrease strictly to 0, got {times}")
    if decoder_variance is None and len(times) == 2:
        raise ValueError(
            f"posterior_table: times must make 2 steps or more, got {times}; "
            "a single step needs decoder_variance"
        )
    if decoder_variance is not None and not decoder_variance > 0:
        raise ValueError(
            f"posterior_table: decoder_variance must be positive, got {decoder_variance}"
        )
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (
        (levels[:-1], levels[1:]) for levels in schedule.levels(times)
    )
    pair = transition(alpha_s, sigma_s, alpha_t, sigma_t)
    small, large = np.array(pair.posterior_variance), np.array(pair.variance)
    if decoder_variance is None:
        decoder_variance = float(respaced_variance(schedule, times[-3], times[-2]))
    small[-1] = large[-1] = decoder_variance
    logs = np.log([small, large, pair.variance])
    last = np.arange(len(small)) == len(small) - 1
    check_prediction("posterior_table", prediction)
    p, q = x0_terms("posterior_table", prediction, alpha_t, sigma_t)
    columns = [alpha_t, sigma_t, alpha_s * pair.variance / sigma_t**2, *logs, last, p, q]
    return np.stack(columns, axis=1)


def vlb_terms(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    rows: Tensor,
    *,
    variance: Variance = "learned_range",
    clip: float | None = None,
    bin_width: float | None = 2 / 255,
) -> tuple[Tensor, Tensor]:
    """Compute the bound's term at one step per sample, and the predicted x0.

    The term (Nichol and Dhariwal 2021, arXiv:2102.09672, eqs. 4-7) is the KL divergence of the
    model's step from the posterior, and at the last step the decoder's negative log-likelihood.

    Args:
        output: the network's output at (x_t, t), `(B, C, ...)`, or `(B, 2C, ...)` = prediction
            and raw variance, which only "learned_range" uses.
        x0: data `(B, C, ...)`, in [-1, 1] with a `bin_width`.
        x_t: the noisy data, the shape of `x0`.
        rows: rows of `posterior_table` `(B, 9)`, one per sample, in the dtype of `x0`.
        variance: reverse variance "small", "large" or "learned_range".
        clip: bound on the predicted |x0| in data units, or None.
        bin_width: distance of neighbouring data levels, in data units; None for data without bins,
            whose last step is a density.

    Returns:
        The terms `(B,)` in bits per dimension (of a density: its nats divided by log(2)), and the
        predicted x0 in the shape of `x0`.
    """
    _, _, weight, log_small, log_large, log_range, last, p, q = (
        column.reshape(-1, *[1] * (x0.ndim - 1)) for column in rows.unbind(1)
    )
    if variance == "learned_range":
        output, v = output.chunk(2, dim=1)
        fraction = (v + 1.0) / 2.0
        log_variance = fraction * log_range + (1.0 - fraction) * log_small
    else:
        output = output[:, : x0.shape[1]]  # drops a learned variance, which is not used here
        log_variance = (log_small if variance == "small" else log_large).expand_as(x0)
    predicted = p * x_t + q * output
    if clip is not None:
        predicted = predicted.clamp(-clip, clip)
    # Both means contain the same multiple of x_t; leaving it out avoids cancellation in float32.
    divergence = normal_kl(weight * x0, log_small, weight * predicted, log_variance)
    # At the last step weight = 1 and x_t drops out, so the predicted x0 is the decoder's mean.
    log_scale = 0.5 * log_variance
    if bin_width is None:
        likelihood = gaussian_log_density(x0, predicted, log_scale)
    else:
        likelihood = discretized_gaussian_log_likelihood(
            x0, predicted, log_scale, bin_width=bin_width
        )
    terms = torch.where(last > 0, -likelihood, divergence)
    return terms.flatten(1).mean(1) / math.log(2.0), predicted


def prior_bits_per_dim(schedule: NoiseSchedule, x0: Tensor, t: float | None = None) -> Tensor:
    """Return the bound's prior term KL(q(x_t | x0) || N(0, s^2 I)) in bits per dimension.

    The deviation s of the noise that sampling starts from is `NoiseSchedule.start_scale`: 1 for
    variance-preserving and flow schedules.

    Args:
        schedule: noise levels.
        x0: data `(B, ...)`.
        t: the first time of the chain; None means T.

    Returns:
        `(B,)` in bits per dimension.
    """
    start = schedule.T if t is None else t
    alpha, sigma = (float(level) for level in schedule.levels(start))
    log_variance = x0.new_tensor(2.0 * math.log(sigma))
    log_prior = x0.new_tensor(2.0 * math.log(schedule.start_scale(start)))
    kl = normal_kl(alpha * x0, log_variance, x0.new_zeros(()), log_prior)
    return kl.flatten(1).mean(1) / math.log(2.0)
