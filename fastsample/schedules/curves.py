"""The formulas of the noise schedules: log alpha_bar as a function of real time t.

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
    """The interface of a noise schedule's formula: log alpha_bar, strictly decreasing in time."""

    @property
    def num_steps(self) -> int | None:
        """The number of steps T, or None when time is continuous in [0, 1]."""
        ...

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar at times in (0, T], in the shape of `t`."""
        ...

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times at which log alpha_bar has these values, in [log alpha_bar(T), 0]."""
        ...


@dataclass(frozen=True)
class LinearCurve:
    """The schedule of linear betas, extended to fractional t; `start` and `end` must differ.

    For rising betas ``alpha_bar(t) = D^t Gamma(a + 1) / Gamma(a - t + 1)`` with D the increment of
    beta and ``a = (1 - beta_1) / D`` (Kong and Ping 2021, arXiv:2106.00132).
    """

    num_steps: int
    start: float
    end: float

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar; falling betas are computed as rising ones in reverse order."""
        if self.end > self.start:
            return self._rising(t)
        total = np.asarray(float(self.num_steps))
        return self._rising(total) - self._rising(total - t)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times by bisection: Newton fails at beta = 1, where the slope is infinite."""
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
        with np.errstate(divide="ignore"):  # log 0 is meant where beta_T = 1: alpha_bar(T) is 0
            for i in range(1, shift + 1):
                log = log + np.log1p(np.maximum(-t / (a + i), -1.0))
        a += shift
        u = t / a
        log = log + t * np.log1p(-(beta + (t - shift) * increment)) - 0.5 * np.log1p(-u)
        log = log + a * _log1p_tail(u) + _stirling(np.asarray(a)) - _stirling(a - t)
        if 2.0 * beta <= increment * (1.0 + increment):
            # Here the closed form rises above 1 until t = 1/2 - beta / D, and falls only then.
            log = np.where(t < 1.0, t * math.log1p(-beta), log)
        return np.where(t >= steps, -np.inf, log) if last == 1.0 else log


def _log1p_tail(u: FloatArray) -> FloatArray:
    """Return ``-log(1 - u) - u`` for u in [0, 1), by a power series where it would cancel."""
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
    """Interpolates a table of log alpha_bar at t = 0..T linearly; the last entry may be -inf."""

    table: FloatArray

    @property
    def num_steps(self) -> int:
        """The number of steps T, which is one less than the length of the table."""
        return len(self.table) - 1

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar at times in (0, T], interpolated from the table."""
        if np.isfinite(self.table[-1]):
            return np.interp(t, np.arange(len(self.table)), self.table)
        # If alpha_bar(T) = 0, a line in log alpha_bar would be -inf over the whole last step, so
        # alpha_bar itself is interpolated there.
        before = self.num_steps - 1
        log = np.interp(t, np.arange(before + 1), self.table[:-1])
        with np.errstate(divide="ignore"):
            return log + np.log1p(-np.minimum(np.maximum(t - before, 0.0), 1.0))

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times at which the interpolated log alpha_bar has the given values."""
        if np.isfinite(self.table[-1]):
            return np.interp(-log_alpha_bar, -self.table, np.arange(len(self.table)))
        before = self.num_steps - 1
        t = np.interp(-log_alpha_bar, -self.table[:-1], np.arange(before + 1))
        return t - np.expm1(np.minimum(log_alpha_bar - self.table[before], 0.0))


@dataclass(frozen=True)
class VdmCurve:
    """The schedule of VDM: ``alpha_bar(t) = sigmoid(-gamma(t))`` with gamma linear in t."""

    gamma_min: float
    gamma_max: float
    num_steps: None = None

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log sigmoid(-gamma(t))."""
        return -np.logaddexp(0.0, self.gamma_min + (self.gamma_max - self.gamma_min) * t)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times; log SNRs above -gamma_min, which no t > 0 has, give negative times."""
        with np.errstate(divide="ignore"):
            gamma = np.log(-np.expm1(log_alpha_bar)) - log_alpha_bar
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


@dataclass(frozen=True)
class FlowCurve:
    """The schedule of flow matching: ``alpha_bar(t) = (1 - t)^2 / ((1 - t)^2 + t^2)``."""

    num_steps: None = None

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log alpha_bar in a form that loses no digits near t = 0 or t = 1."""
        with np.errstate(divide="ignore"):
            return -np.log1p((t / (1.0 - t)) ** 2)

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return ``t = r / (1 + r)`` with r = sigma / alpha."""
        with np.errstate(divide="ignore"):
            return 1.0 / (1.0 + 1.0 / np.sqrt(np.expm1(-log_alpha_bar)))


def beta_range(function: str, start: float, end: float) -> tuple[float, float]:
    """Return (start, end) as floats; raise unless both are in (0, 1), or `end` is 1."""
    first = check_real(function, "beta_start", start)
    last = check_real(function, "beta_end", end)
    if not 0.0 < first < 1.0:
        raise ValueError(f"{function}: beta_start must be in (0, 1), got {first:g}")
    if not 0.0 < last <= 1.0:
        raise ValueError(f"{function}: beta_end must be in (0, 1], got {last:g}")
    return first, last


def table_from_betas(function: str, betas: FloatArray) -> TableCurve:
    """Return the curve whose alpha_bar at t = 1..T is the cumulative product of 1 - beta."""
    valid = (betas > 0.0) & (betas < 1.0)
    valid[-1] |= betas[-1] == 1.0
    if not valid.all():
        i = int(np.argmin(valid))
        raise ValueError(
            f"{function}: betas must be in (0, 1), the last at most 1, got betas[{i}] = {betas[i]}"
        )
    with np.errstate(divide="ignore"):
        return TableCurve(np.concatenate(([0.0], np.cumsum(np.log1p(-betas)))))
