"""Noise schedules that are not a curve of alpha_bar over [0, 1]: of any functions, or exploding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_real

Function: TypeAlias = Callable[[Any], Any]
"""A function of time, from a float64 array `(n,)` (or from a number) to values in float64."""

MOST_SIGMA = 1e150  # the largest noise level of `ExplodingCurve`, whose square is finite

_NAME = "NoiseSchedule.from_functions"
_KNOTS = 1024  # The functions are checked at so many even times, and at a few near 0.
_NEAR_ZERO = 1e-6  # "Just above 0" is this share of T.
_MOST_NOISE = 0.05  # the largest sigma / alpha just above t = 0
_MOST_CHANGE = 0.01  # the largest |alpha - 1| just above t = 0
_NO_SIGNAL = 1e-12  # alpha / sigma at T below which it is the rounding error of 0, as in cos(pi/2)


@dataclass(frozen=True)
class FunctionCurve(ABC):
    """A continuous schedule up to any time T.

    Attributes:
        end: the noisiest time T.
    """

    end: float

    @property
    def num_steps(self) -> None:
        """Return None: time is continuous."""
        return None

    @abstractmethod
    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return log(alpha^2 / (alpha^2 + sigma^2)) at times in (0, T], in the shape of `t`."""

    @abstractmethod
    def levels(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (alpha, sigma) at times in [0, T]; clean data, 1 and 0, at t = 0."""

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times at which log alpha_bar has these values, by 64 bisections of [0, T]."""
        low, high = np.zeros_like(log_alpha_bar), np.full_like(log_alpha_bar, self.end)
        for _ in range(64):
            middle = 0.5 * (low + high)
            early = self.log_alpha_bar(middle) > log_alpha_bar
            low, high = np.where(early, middle, low), np.where(early, high, middle)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class LevelsCurve(FunctionCurve):
    """The schedule of two functions alpha(t) and sigma(t)."""

    alpha: Function
    sigma: Function

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return ``-log(1 + (sigma / alpha)^2)``, which keeps its digits near t = 0."""
        alpha, sigma = self.levels(t)
        with np.errstate(divide="ignore"):  # alpha may be 0 at T
            return -np.log1p((sigma / alpha) ** 2)

    def levels(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what the functions give, and clean data at t = 0.

        An alpha at T that is a rounding error of 0 is 0.
        """
        later = np.where(t > 0.0, t, self.end)  # many functions have no value at 0
        alpha, sigma = values("alpha", self.alpha, later), values("sigma", self.sigma, later)
        nothing = (t == self.end) & (np.abs(alpha) < _NO_SIGNAL * sigma)
        alpha = np.where(nothing, 0.0, alpha)
        return np.where(t > 0.0, alpha, 1.0), np.where(t > 0.0, sigma, 0.0)


@dataclass(frozen=True)
class LogSnrCurve(FunctionCurve):
    """The variance-preserving schedule of a function log(alpha^2 / sigma^2)."""

    log_snr: Function

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return the logarithm of the sigmoid of the log SNR, -inf where that is only rounding."""
        log_snr = values("log_snr", self.log_snr, np.where(t > 0.0, t, self.end))
        nothing = (t == self.end) & (log_snr < 2.0 * math.log(_NO_SIGNAL))
        log_snr = np.where(nothing, -np.inf, log_snr)
        return np.where(t > 0.0, -np.logaddexp(0.0, -log_snr), 0.0)

    def levels(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the square roots of alpha_bar and of 1 - alpha_bar."""
        log = self.log_alpha_bar(t)
        return np.exp(0.5 * log), np.sqrt(np.abs(np.expm1(log)))


@dataclass(frozen=True)
class ExplodingCurve(FunctionCurve):
    """The variance-exploding schedule alpha = 1, sigma = t, in closed form."""

    def log_alpha_bar(self, t: FloatArray) -> FloatArray:
        """Return ``-log(1 + t^2)``."""
        return -np.log1p(t**2)

    def levels(self, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return 1 and t."""
        return np.ones_like(t), 1.0 * t  # a new array: that of the caller may be read-only

    def time_at(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return ``sqrt(1 / alpha_bar - 1)``."""
        return np.sqrt(np.expm1(-log_alpha_bar))


OWN_LEVELS = (LevelsCurve, ExplodingCurve)
"""The curves of schedules whose alpha^2 + sigma^2 need not be 1, which know both themselves."""


def function_curve(alpha: Any, sigma: Any, log_snr: Any, T: Any) -> FunctionCurve:
    """Check the arguments of `NoiseSchedule.from_functions`, and return their curve.

    Raises:
        TypeError: an argument of the wrong type, or functions that do not give float64.
        ValueError: other functions than alpha and sigma, or log_snr; values that are not finite, a
            log SNR that does not fall, or levels near t = 0 that are not those of clean data.
    """
    end = check_real(_NAME, "T", T)
    if end <= 0.0:
        raise ValueError(f"{_NAME}: T must be positive, got {end:g}")
    given = {"alpha": alpha, "sigma": sigma, "log_snr": log_snr}
    names = [name for name, function in given.items() if function is not None]
    if names not in (["alpha", "sigma"], ["log_snr"]):
        raise ValueError(
            f"{_NAME}: functions must be alpha and sigma, or log_snr alone, got {names or 'none'}"
        )
    for name in names:
        if not callable(given[name]):
            raise TypeError(f"{_NAME}: {name} must be callable, got {given[name]!r}")
    curve = LevelsCurve(end, alpha, sigma) if log_snr is None else LogSnrCurve(end, log_snr)
    even = np.linspace(0.0, end, _KNOTS + 1)[1:]
    near = end * np.geomspace(_NEAR_ZERO, 1e-4, 3)
    _check_levels(curve, np.concatenate((near, even)))
    return curve


def values(name: str, function: Function, t: FloatArray) -> FloatArray:
    """Return a function's values at times, in the shape of `t`.

    The function is called with the whole array. Where it fails on arrays, like those of `math`, it
    is called with one number after the other. A constant stands for every time.

    Raises:
        TypeError: values that are not float64, which would be too coarse for a plan's laws.
        ValueError: another shape.
    """
    with np.errstate(all="ignore"):  # infinities are judged by the caller
        try:
            given: Any = function(t)
        except (TypeError, ValueError):
            each = [function(time) for time in t.ravel().tolist()]
            flat: npt.NDArray[Any] = np.asarray(each, None if each else np.float64)
            given = cast(Any, flat).reshape(t.shape)
    array = np.asarray(given)
    if array.ndim == 0 and array.dtype.kind in "if" and not hasattr(given, "dtype"):
        array = array.astype(np.float64)  # a number of Python
    if array.dtype != np.float64:
        raise TypeError(
            f"{_NAME}: {name} must give float64 values, got {array.dtype}; compute in double "
            "precision"
        )
    if array.shape not in ((), t.shape):
        raise ValueError(
            f"{_NAME}: {name} must give one value per time {t.shape}, got shape {array.shape}"
        )
    return np.broadcast_to(array, t.shape)


def _check_levels(curve: FunctionCurve, t: FloatArray) -> None:
    """Raise ValueError unless the values at rising times are those of a noise schedule."""
    first, inner = t == t[0], t < curve.end
    clean = "at t = 0, which is clean data (T is noise)"
    if isinstance(curve, LogSnrCurve):
        falling, got = "log_snr", values("log_snr", curve.log_snr, t)
        _refuse(np.isnan(got) | (np.isinf(got) & inner), falling, "be finite below T", got, t)
        noisy = first & (got < -2.0 * math.log(_MOST_NOISE))
        _refuse(noisy, falling, f"be infinite or large {clean}", got, t)
    else:
        alpha, sigma = curve.levels(t)
        noisy = first & (sigma > _MOST_NOISE * alpha)
        changed = first & (np.abs(alpha - 1.0) > _MOST_CHANGE)
        _refuse(~np.isfinite(alpha), "alpha", "be finite", alpha, t)
        _refuse(~np.isfinite(sigma), "sigma", "be finite", sigma, t)
        _refuse(changed, "alpha", f"be 1 {clean}", alpha, t)
        _refuse(noisy, "sigma", f"be 0 or small {clean}", sigma, t)
        _refuse((alpha < 0.0) | ((alpha == 0.0) & inner), "alpha", "be positive below T", alpha, t)
        _refuse(sigma <= 0.0, "sigma", "be positive above t = 0", sigma, t)
        falling, got = "alpha / sigma", alpha / sigma
    rises = np.append(False, np.diff(got) >= 0.0)
    _refuse(rises, falling, "fall everywhere from t = 0 (data) to T (noise)", got, t)


def _refuse(
    bad: npt.NDArray[np.bool_], argument: str, rule: str, got: FloatArray, t: FloatArray
) -> None:
    """Raise ValueError for the first time of `t` at which `bad` holds."""
    if np.any(bad):
        i = int(np.argmax(bad))
        raise ValueError(f"{_NAME}: {argument} must {rule}, got {got[i]:.6g} at t = {t[i]:g}")
