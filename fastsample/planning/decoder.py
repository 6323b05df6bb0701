"""The last step's cost ``-E log p(x0 | x_t)`` as a function of the decoder's variance.

The posterior's variance is 0 at s = 0, so a decoder has to choose its own. `GaussianDecoder` is a
density, for continuous data; `DiscretizedDecoder` is a probability of bins, measured at some
standard deviations and interpolated between them.
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

NUM_SCALES = 48
_REFINEMENT = 16  # how finely the best variance is looked for between two scales


@dataclass(frozen=True, eq=False)
class GaussianDecoder:
    """``D / 2 log(2 pi v) + m_t / (2 v)`` nats.

    Attributes:
        error: `(n,)` m_t, summed over dimensions.
        dims: D.
    """

    error: FloatArray
    dims: int

    def costs(self, variance: npt.ArrayLike) -> FloatArray:
        """Nats at variances `(n,)` or `(n, m)`, one row per time."""
        variance = np.asarray(variance, np.float64)
        error = self.error.reshape(-1, *[1] * (variance.ndim - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return 0.5 * self.dims * np.log(2.0 * math.pi * variance) + 0.5 * error / variance

    def best(self) -> FloatArray:
        """The variance `(n,)` that costs least at each time."""
        return self.error / self.dims


@dataclass(frozen=True, eq=False)
class DiscretizedDecoder:
    """Nats measured at log standard deviations; cubic interpolation between four of them.

    Good to 1e-3 bits/dim over a thousand samples; a few samples beyond the floor of 1e-12 in
    probability make a kink, and with it 0.03.

    Attributes:
        log_scales: `(m,)` evenly spaced.
        nll: `(n, m)` nats per sample, at each time.
    """

    log_scales: FloatArray
    nll: FloatArray

    def costs(self, variance: npt.ArrayLike) -> FloatArray:
        """Nats at variances `(n,)` or `(n, m)`, one row per time; outside the scales, the end's."""
        with np.errstate(divide="ignore"):
            log_scale = 0.5 * np.log(np.asarray(variance, np.float64))
        first, spacing = self.log_scales[0], self.log_scales[1] - self.log_scales[0]
        last = len(self.log_scales) - 1
        place = np.clip((log_scale - first) / spacing, 0.0, last)
        start = np.clip(np.floor(place).astype(np.int64) - 1, 0, last - 3)
        u = place - start
        weights = (
            -(u - 1) * (u - 2) * (u - 3) / 6,
            u * (u - 2) * (u - 3) / 2,
            -u * (u - 1) * (u - 3) / 2,
            u * (u - 1) * (u - 2) / 6,
        )
        row = np.arange(len(self.nll)).reshape(-1, *[1] * (place.ndim - 1))
        return sum(w * self.nll[row, start + i] for i, w in enumerate(weights))  # pyright: ignore

    def best(self) -> FloatArray:
        """The variance `(n,)` that costs least at each time."""
        fine = np.linspace(
            self.log_scales[0],
            self.log_scales[-1],
            (len(self.log_scales) - 1) * _REFINEMENT + 1,
        )
        variance = np.exp(2.0 * fine)
        costs = self.costs(np.broadcast_to(variance, (len(self.nll), len(fine))))
        return variance[np.argmin(costs, axis=1)]


Decoders: TypeAlias = GaussianDecoder | DiscretizedDecoder


def decoder_log_scales(bin_width: float, posterior_variance: FloatArray) -> FloatArray:
    """The standard deviations at which a profile measures the decoder, as logarithms.

    From an eighth of a bin, or the smallest posterior deviation between neighbouring times if that
    is smaller, to just above 1.

    Args:
        bin_width: distance of neighbouring data levels.
        posterior_variance: of the steps between neighbouring times.
    """
    least = bin_width / 8.0
    if posterior_variance.size:
        least = min(least, math.sqrt(float(posterior_variance.min())))
    return np.linspace(math.log(least), math.log(1.05), NUM_SCALES)


def respaced_variance(schedule: NoiseSchedule, t: npt.ArrayLike, s: npt.ArrayLike) -> FloatArray:
    """The last step's variance by improved-diffusion's convention.

    The posterior variance of the step from t to s, the one before it (Nichol and Dhariwal 2021,
    arXiv:2102.09672, released code).
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        schedule.levels(np.asarray(time, np.float64)) for time in (t, s)
    )
    return transition(alpha_s, sigma_s, alpha_t, sigma_t).posterior_variance


def decoder_variances(
    choice: str | npt.ArrayLike, schedule: NoiseSchedule, times: FloatArray, curve: Decoders
) -> FloatArray:
    """The last step's variance from each of the times `(n,)`, by name or as given.

    Args:
        choice: "optimal" (costs least by `curve`), "forward" (``1 - alpha_bar_t``), "posterior"
            (the same, but for the first time the posterior variance of the two first times), or
            `(n,)` positive variances.
        schedule: noise levels.
        times: `(n,)` ascending.
        curve: the last step's cost as a function of the variance.

    Raises:
        ValueError: an unknown name, or variances that are not n positive numbers.
    """
    if not isinstance(choice, str):
        given = check_array("costs", "decoder", choice)
        if given.shape != times.shape or np.any(given <= 0.0):
            raise ValueError(
                f"costs: decoder must be {len(times)} positive variances, "
                f"got shape {given.shape} from {given.min(initial=np.inf):g}"
            )
        return given
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
