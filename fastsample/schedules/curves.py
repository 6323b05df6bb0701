"""Curves of log alpha_bar over real time: the mathematics behind each noise schedule.

A curve takes times in (0, T] and returns log alpha_bar <= 0; `time_at` inverts it. Curves do not
check ranges: the schedule that holds one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastsample._support.checks import FloatArray, check_real


class Curve(Protocol):
    """A strictly decreasing function: log alpha_bar over time."""

    @property
    def num_steps(self) -> int | None:
        """T, or None when time is continuous in [0, 1]."""
        ...

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar at times in (0, T]."""
        ...

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times at levels in [log alpha_bar(T), 0]."""
        ...


@dataclass(frozen=True)
class LinearCurve:
    """Linear betas, continuous in t; the two ends must differ.

    For rising betas ``alpha_bar(t) = D^t Gamma(a + 1) / Gamma(a - t + 1)`` with D the increment of
    beta and ``a = (1 - beta_1) / D`` (Kong and Ping 2021, arXiv:2106.00132).
    """

    num_steps: int
    start: float
    end: float

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar; falling betas are treated as rising ones read backwards."""
        if self.end > self.start:
            return self._rising(t)
        total = np.asarray(float(self.num_steps))
        return self._rising(total) - self._rising(total - t)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return times by bisection: Newton fails where beta reaches 1, with infinite slope."""
        low = np.zeros_like(log_alpha_bar)
        high = np.full_like(log_alpha_bar, self.num_steps)
        for _ in range(64):
            middle = 0.5 * (low + high)
            early = self.log_alpha_bar(middle) > log_alpha_bar
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return low

    def _rising(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar for betas that rise from the smaller to the larger end."""
        beta, last, steps = min(self.start, self.end), max(self.start, self.end), self.num_steps
        increment = (last - beta) / (steps - 1)
        a = (1.0 - beta) / increment
        # Gamma(z + 1) = z Gamma(z) moves both arguments up to where Stirling's series is exact.
        shift = max(0, math.ceil(20.0 - (a - steps)))
        log = np.zeros_like(t)
        with np.errstate(divide="ignore"):  # beta_T = 1: alpha_bar(T) = 0
            for i in range(1, shift + 1):
                log = log + np.log1p(np.maximum(-t / (a + i), -1.0))
        a += shift
        u = t / a
        log = log + t * np.log1p(-(beta + (t - shift) * increment)) - 0.5 * np.log1p(-u)
        log = log + a * _log1p_tail(u) + _stirling(np.asarray(a)) - _stirling(a - t)
        if 2.0 * beta <= increment * (1.0 + increment):
            # The closed form turns at t = 1/2 - beta / D and exceeds 1 before that.
            log = np.where(t < 1.0, t * math.log1p(-beta), log)
        return np.where(t >= steps, -np.inf, log) if last == 1.0 else log


def _log1p_tail(u: FloatArray) -> FloatArray:
    """Return ``-log(1 - u) - u`` for u in [0, 1), by its series where the difference cancels."""
    series = np.zeros_like(u)
    small = np.minimum(u, 0.1)
    for k in range(18, 1, -1):
        series = (series + 1.0 / k) * small
    series = series * small
    return np.where(u < 0.1, series, -np.log1p(-np.minimum(u, 1.0 - 1e-16)) - u)


def _stirling(z: FloatArray) -> FloatArray:
    """Return the remainder of Stirling's formula for log Gamma(z + 1), to 2e-15 for z >= 20."""
    w = 1.0 / z**2
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w / 1680))) / z


@dataclass(frozen=True, eq=False)
class TableCurve:
    """Log alpha_bar at the integers 0..T, linear between them; the last may be -inf."""

    table: FloatArray

    @property
    def num_steps(self) -> int:
        """The number of steps T."""
        return len(self.table) - 1

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Interpolate the table."""
        if np.isfinite(self.table[-1]):
            return np.interp(t, np.arange(len(self.table)), self.table)
        # If alpha_bar(T) = 0, a line in log alpha_bar would be -inf over the whole last step, so
        # alpha_bar itself is interpolated there.
        before = self.num_steps - 1
        log = np.interp(t, np.arange(before + 1), self.table[:-1])
        with np.errstate(divide="ignore"):
            return log + np.log1p(-np.minimum(np.maximum(t - before, 0.0), 1.0))

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the exact inverse of the interpolation."""
        if np.isfinite(self.table[-1]):
            return np.interp(-log_alpha_bar, -self.table, np.arange(len(self.table)))
        before = self.num_steps - 1
        t = np.interp(-log_alpha_bar, -self.table[:-1], np.arange(before + 1))
        return t - np.expm1(np.minimum(log_alpha_bar - self.table[before], 0.0))


@dataclass(frozen=True)
class VdmCurve:
    """``alpha_bar = sigmoid(-gamma)`` with gamma linear in t."""

    gamma_min: float
    gamma_max: float
    num_steps: None = None

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log sigmoid(-gamma(t))."""
        return -np.logaddexp(0.0, self.gamma_min + (self.gamma_max - self.gamma_min) * t)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return times; levels cleaner than gamma_min give negative ones, as no t > 0 has them."""
        with np.errstate(divide="ignore"):
            gamma = np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@dataclass(frozen=True)
class FlowCurve:
    """``alpha_bar = (1 - t)^2 / ((1 - t)^2 + t^2)``."""

    num_steps: None = None

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar in a form that cancels at neither end."""
        with np.errstate(divide="ignore"):
            return -np.log1p((t / (1.0 - t)) ** 2)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return ``t = r / (1 + r)`` with r = sigma / alpha."""
        with np.errstate(divide="ignore"):
            return 1.0 / (1.0 + 1.0 / np.sqrt(np.expm1(-log_alpha_bar)))


def beta_range(function: str, start: float, end: float) -> tuple[float, float]:
    """Return both ends of a range of betas, checked: in (0, 1), and only the last may be 1."""
    first = check_real(function, "beta_start", start)
    last = check_real(function, "beta_end", end)
    if not 0.0 < first < 1.0:
        raise ValueError(f"{function}: beta_start must be in (0, 1), got {first:g}")
    if not 0.0 < last <= 1.0:
        raise ValueError(f"{function}: beta_end must be in (0, 1], got {last:g}")
    return first, last


def table_from_betas(function: str, betas: FloatArray) -> TableCurve:
    """Return the curve through the cumulative products of 1 - beta."""
    valid = (betas > 0.0) & (betas < 1.0)
    valid[-1] |= betas[-1] == 1.0
    if not valid.all():
        i = int(np.argmin(valid))
        raise ValueError(
            f"{function}: betas must be in (0, 1), the last at most 1, got betas[{i}] = {betas[i]}"
        )
    with np.errstate(divide="ignore"):
        return TableCurve(np.concatenate(([0.0], np.cumsum(np.log1p(-betas)))))
