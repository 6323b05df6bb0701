"""The last step's cost ``-E log p(x0 | x_t)`` as a function of the decoder's variance.

The posterior's variance is 0 at s = 0, so the last step needs a variance of its own, which the
decoder supplies. `GaussianDecoder` is a density, for continuous data; `DiscretizedDecoder` is a
probability of bins, measured at some standard deviations and interpolated between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_array
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition

NUM_SCALES = 48  # A profile measures the decoder at this many standard deviations.
_REFINEMENT = 16  # `best` tries this many variances between two measured ones.


@dataclass(frozen=True, eq=False)
class GaussianDecoder:
    """A Gaussian last step, which costs ``D / 2 log(2 pi v) + m_t / (2 v)`` nats at variance v.

    Attributes:
        error: `(n,)` m_t = E||x0 - x0hat_t||^2, summed over dimensions.
        dims: D, dimensions of a sample.
    """

    error: FloatArray
    dims: int

    def costs(self, variance: npt.ArrayLike) -> FloatArray:
        """Return the cost in nats at variances `(n,)` or `(n, m)`, one row per time."""
        variance = np.asarray(variance, np.float64)
        error = np.reshape(self.error, (-1, *[1] * (variance.ndim - 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return 0.5 * self.dims * np.log(2.0 * math.pi * variance) + 0.5 * error / variance

    def best(self) -> FloatArray:
        """Return the variance `(n,)` that costs least at each time."""
        return self.error / self.dims


@dataclass(frozen=True, eq=False)
class DiscretizedDecoder:
    """A last step over discrete data levels (bins), measured at some standard deviations.

    Between them the cost is interpolated by a cubic through four neighbours, which is good to 1e-3
    bits/dim over a thousand samples. A few samples at the floor of 1e-12 in probability make a
    kink, and the error there reaches 0.03.

    Attributes:
        log_scales: `(m,)` logarithms of the standard deviations, evenly spaced.
        nll: `(n, m)` negative log-likelihood in nats per sample, at each time.
    """

    log_scales: FloatArray
    nll: FloatArray

    def costs(self, variance: npt.ArrayLike) -> FloatArray:
        """Return the cost in nats at variances `(n,)` or `(n, m)`, one row per time.

        Beyond the first or last scale the cost is that of the end.
        """
        with np.errstate(divide="ignore"):
            log_scale = 0.5 * np.log(np.asarray(variance, np.float64))
        first, spacing = self.log_scales[0], self.log_scales[1] - self.log_scales[0]
        last = len(self.log_scales) - 1
        position: FloatArray = np.minimum(np.maximum((log_scale - first) / spacing, 0.0), last)
        start = np.minimum(np.maximum(np.floor(position).astype(np.int64) - 1, 0), last - 3)
        u = position - start
        weights = (
            -(u - 1) * (u - 2) * (u - 3) / 6,
            u * (u - 2) * (u - 3) / 2,
            -u * (u - 1) * (u - 3) / 2,
            u * (u - 1) * (u - 2) / 6,
        )
        row = np.reshape(np.arange(len(self.nll)), (-1, *[1] * (position.ndim - 1)))
        nats = np.zeros(())
        for i, weight in enumerate(weights):
            nats = nats + weight * self.nll[row, start + i]
        return nats

    def best(self) -> FloatArray:
        """Return the variance `(n,)` that costs least at each time."""
        first, last = float(self.log_scales[0]), float(self.log_scales[-1])
        fine = np.linspace(first, last, (len(self.log_scales) - 1) * _REFINEMENT + 1)
        variance = np.exp(2.0 * fine)
        costs = self.costs(np.broadcast_to(variance, (len(self.nll), len(fine))))
        return variance[np.argmin(costs, axis=1)]


Decoders: TypeAlias = GaussianDecoder | DiscretizedDecoder


def decoder_log_scales(bin_width: float, posterior_variance: FloatArray) -> FloatArray:
    """Return the logarithms of the standard deviations at which a profile measures the decoder.

    They run from an eighth of a bin, or the smallest posterior deviation between neighbouring times
    if that is smaller, to just above 1.

    Args:
        bin_width: distance of neighbouring data levels.
        posterior_variance: `(n,)` posterior variances of the steps between neighbouring times.
    """
    least = bin_width / 8.0
    if posterior_variance.size:
        least = min(least, math.sqrt(float(posterior_variance.min())))
    return np.linspace(math.log(least), math.log(1.05), NUM_SCALES)


def respaced_variance(schedule: NoiseSchedule, t: npt.ArrayLike, s: npt.ArrayLike) -> FloatArray:
    """Return the last step's variance as improved-diffusion chooses it, in the shape of t and s.

    It is the posterior variance of the step before it, from t to s (Nichol and Dhariwal 2021,
    arXiv:2102.09672, in their released code).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        schedule.levels(np.asarray(time, np.float64)) for time in (t, s)
    )
    return transition(alpha_s, sigma_s, alpha_t, sigma_t).posterior_variance


def decoder_variances(
    choice: str | npt.ArrayLike, schedule: NoiseSchedule, times: FloatArray, curve: Decoders
) -> FloatArray:
    """Return the variance `(n,)` of the last step (to 0) from each of the times.

    Args:
        choice: "optimal" (the variance that costs least by `curve`), "forward" (``1 -
            alpha_bar_t``), "posterior" (the same, except from the first time: the posterior
            variance of the step between the first two times), or `(n,)` positive variances.
        schedule: noise levels.
        times: `(n,)` ascending.
        curve: the last step's cost as a function of the variance.

    Raises:
        ValueError: an unknown name, or variances that are not n positive numbers.
    """
    if not isinstance(choice, str):
        variances = check_array("costs", "decoder", choice)
        if variances.shape != times.shape or np.any(variances <= 0.0):
            raise ValueError(
                f"costs: decoder must be {len(times)} positive variances, "
                f"got shape {variances.shape} from {variances.min(initial=np.inf):g}"
            )
        return variances
    if choice == "optimal":
        return curve.best()
    if choice not in ("forward", "posterior"):
        raise ValueError(
            'costs: decoder must be "optimal", "forward", "posterior", "respaced" or '
            f"variances, got {choice!r}"
        )
    variance = schedule.levels(times)[1] ** 2
    if choice == "posterior" and len(times) > 1:
        variance[0] = respaced_variance(schedule, times[1], times[0])
    return variance
