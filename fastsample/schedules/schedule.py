"""Noise schedules: how much signal (alpha) and noise (sigma) is left at a real time t.

Everything is computed from ``log alpha_bar`` in float64, with ``sigma^2 = -expm1(log alpha_bar)``:
near t = 0 the difference ``1 - alpha_bar`` would lose up to twelve of sixteen digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import (
    FloatArray,
    check_array,
    check_integer,
    check_real,
    check_vector,
)
from fastsample.schedules.curves import (
    Curve,
    FlowCurve,
    LinearCurve,
    TableCurve,
    VdmCurve,
    beta_range,
    table_from_betas,
)
from fastsample.schedules.description import MOST_STEPS, check_description
from fastsample.schedules.functions import (
    MOST_SIGMA,
    OWN_LEVELS,
    ExplodingCurve,
    Function,
    FunctionCurve,
    function_curve,
)

Argument: TypeAlias = int | float | tuple[float, ...] | Function


@dataclass(frozen=True, repr=False)
class NoiseSchedule:
    """Gives alpha(t) and sigma(t) of ``x_t = alpha(t) x0 + sigma(t) eps`` for real t in [0, T].

    For every schedule t = 0 is data, ``alpha(0) = 1`` and ``sigma(0) = 0`` exactly, since a sampler
    lands there. (`vdm` jumps there: its alpha_bar just above 0 is sigmoid(-gamma_min).) Integer t
    of a discrete schedule is the step t of the papers; the index of a trained network is t - 1.

    Build one with the class methods. Schedules are immutable, and equal when they were built by the
    same class method from the same values.

    Attributes:
        kind: name of the class method that built the schedule.
        arguments: the arguments of that method, as (name, value) pairs.
        num_steps: T of a discrete schedule, None for a continuous one.
        T: the noisiest time as a float: num_steps, or 1.0 for a continuous schedule unless it was
            made with another T.
    """

    kind: str
    arguments: tuple[tuple[str, Argument], ...]
    _curve: Curve = field(compare=False)

    # ---- constructors

    @classmethod
    def linear(
        cls, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        r"""Make the schedule of evenly spaced betas (Ho et al. 2020, arXiv:2006.11239).

        Between the integers alpha_bar follows the Gamma-function form of Kong and Ping 2021, "On
        Fast Sampling of Diffusion Probabilistic Models" (arXiv:2106.00132): ``alpha_bar(t) = D^t
        Gamma(a + 1) / Gamma(a - t + 1)`` with ``D`` the increment of beta and ``a = (1 -
        beta_start) / D``. Where that form exceeds 1, at ``t < 1`` when ``beta_start <= D / 2``, log
        alpha_bar is linear in t instead, so that time stays invertible.

        Args:
            num_steps: T, at least 1.
            beta_start: variance of step 1, in (0, 1).
            beta_end: variance of step T, in (0, 1]; 1 gives a zero terminal SNR. It may be
                smaller than `beta_start`.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument out of range.
        """
        steps = check_integer("NoiseSchedule.linear", "num_steps", num_steps, 1, MOST_STEPS)
        start, end = beta_range("NoiseSchedule.linear", beta_start, beta_end)
        arguments = (("num_steps", steps), ("beta_start", start), ("beta_end", end))
        if steps == 1 or start == end:  # The closed form divides by end - start.
            curve = table_from_betas("NoiseSchedule.linear", np.linspace(start, end, steps))
            return cls("linear", arguments, curve)
        return cls("linear", arguments, LinearCurve(steps, start, end))

    @classmethod
    def scaled_linear(
        cls, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """Make the schedule of betas whose square roots are evenly spaced, as in Stable Diffusion.

        The DDIM repository calls them "quad" (Song et al. 2021, arXiv:2010.02502).

        Args:
            num_steps: T, at least 1.
            beta_start: variance of step 1, in (0, 1).
            beta_end: variance of step T, in (0, 1].
        """
        steps = check_integer("NoiseSchedule.scaled_linear", "num_steps", num_steps, 1, MOST_STEPS)
        start, end = beta_range("NoiseSchedule.scaled_linear", beta_start, beta_end)
        betas: FloatArray = np.square(np.linspace(math.sqrt(start), math.sqrt(end), steps))
        arguments = (("num_steps", steps), ("beta_start", start), ("beta_end", end))
        curve = table_from_betas("NoiseSchedule.scaled_linear", np.minimum(betas, 1.0))
        return cls("scaled_linear", arguments, curve)

    @classmethod
    def cosine(cls, num_steps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """Make the cosine schedule of Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. (17).

        The betas are those of the improved-diffusion repository, bounded by `max_beta`.

        Args:
            num_steps: T, at least 1.
            max_beta: bound on each step's variance, in (0, 1].
        """
        steps = check_integer("NoiseSchedule.cosine", "num_steps", num_steps, 1, MOST_STEPS)
        bound = check_real("NoiseSchedule.cosine", "max_beta", max_beta, 0.0, 1.0)
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], bound)
        curve = table_from_betas("NoiseSchedule.cosine", betas)
        return cls("cosine", (("num_steps", steps), ("max_beta", bound)), curve)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | npt.NDArray[Any]) -> NoiseSchedule:
        """Make a schedule from betas; between integer times log alpha_bar is linear in t.

        Args:
            betas: `(T,)`, each in (0, 1); the last may be 1 (zero terminal SNR: there alpha_bar
                itself is linear over the last step). ``betas[0]`` belongs to t = 1.

        Raises:
            TypeError: `betas` does not hold real numbers.
            ValueError: a beta out of range, or no vector.
        """
        values = check_vector("NoiseSchedule.from_betas", "betas", betas)
        curve = table_from_betas("NoiseSchedule.from_betas", values)
        return cls("from_betas", (("betas", tuple(values.tolist())),), curve)

    @classmethod
    def from_alpha_bar(cls, values: Sequence[float] | npt.NDArray[Any]) -> NoiseSchedule:
        """Make a schedule from alpha_bar; between integer times log alpha_bar is linear in t.

        Args:
            values: `(T,)`, strictly decreasing in (0, 1); the last may be 0 (zero terminal SNR:
                there alpha_bar itself is linear over the last step). ``values[0]`` belongs to
                t = 1.

        Raises:
            TypeError: `values` does not hold real numbers.
            ValueError: values that do not decrease or are out of range, or no vector.
        """
        name = "NoiseSchedule.from_alpha_bar"
        table = check_vector(name, "values", values)
        falling = np.diff(table, prepend=1.0) < 0.0
        if not falling.all():
            i = int(np.argmin(falling))
            raise ValueError(
                f"{name}: values must be below 1 and strictly decreasing, "
                f"got values[{i}] = {table[i]}"
            )
        if table[-1] < 0.0:
            raise ValueError(f"{name}: values must not be negative, got values[-1] = {table[-1]}")
        with np.errstate(divide="ignore"):
            curve = TableCurve(np.concatenate(([0.0], np.log(table))))
        return cls("from_alpha_bar", (("values", tuple(table.tolist())),), curve)

    @classmethod
    def vdm(cls, gamma_min: float = -13.3, gamma_max: float = 5.0) -> NoiseSchedule:
        """Make the continuous schedule with T = 1 whose log SNR is linear in t.

        Kingma et al. 2021, "Variational Diffusion Models" (arXiv:2107.00630): ``alpha(t)^2 =
        sigmoid(-gamma(t)) = 1 - sigma(t)^2`` with ``gamma(t) = gamma_min + (gamma_max - gamma_min)
        t``. At t = 0 exactly the schedule returns clean data, not the level of gamma_min.

        Args:
            gamma_min: -log SNR just above t = 0, in [-700, 700].
            gamma_max: -log SNR at t = 1, above gamma_min, at most 700.
        """
        low = check_real("NoiseSchedule.vdm", "gamma_min", gamma_min, -700.0, 700.0)
        high = check_real("NoiseSchedule.vdm", "gamma_max", gamma_max, -700.0, 700.0)
        if not low < high:
            raise ValueError(
                f"NoiseSchedule.vdm: gamma_max must be above gamma_min = {low}, got {high}"
            )
        return cls("vdm", (("gamma_min", low), ("gamma_max", high)), VdmCurve(low, high))

    @classmethod
    def flow(cls) -> NoiseSchedule:
        """Make the schedule ``alpha(t) = 1 - t``, ``sigma(t) = t`` of rectified flow, with T = 1.

        Liu et al. 2022, "Flow Straight and Fast" (arXiv:2209.03003).

        alpha^2 + sigma^2 is not 1 here: `alpha_bar` is ``alpha^2 / (alpha^2 + sigma^2)``, that of
        the variance-preserving process with the same signal-to-noise ratio.
        """
        return cls("flow", (), FlowCurve())

    @classmethod
    def exploding(cls, sigma_max: float = 80.0) -> NoiseSchedule:
        """Make the schedule ``alpha(t) = 1``, ``sigma(t) = t`` with T = `sigma_max`.

        It is that of EDM (Karras et al. 2022, arXiv:2206.00364), and of k-diffusion and ComfyUI:
        time is the noise level, and the variance of x_t explodes. Samples start from noise of
        deviation ``sqrt(1 + sigma_max^2)`` (`start_scale`).

        Args:
            sigma_max: the largest noise level, in (0, 1e150], so that its square is finite.
        """
        top = check_real("NoiseSchedule.exploding", "sigma_max", sigma_max)
        if not 0.0 < top <= MOST_SIGMA:
            raise ValueError(
                f"NoiseSchedule.exploding: sigma_max must be in (0, {MOST_SIGMA:g}], got {top:g}"
            )
        return cls("exploding", (("sigma_max", top),), ExplodingCurve(top))

    @classmethod
    def from_functions(
        cls,
        *,
        alpha: Function | None = None,
        sigma: Function | None = None,
        log_snr: Function | None = None,
        T: float = 1.0,
    ) -> NoiseSchedule:
        """Make a continuous schedule from any functions of time: alpha and sigma, or the log SNR.

        ``from_functions(alpha=lambda t: 1.0, sigma=lambda t: t, T=80.0)`` has the levels of
        `exploding`. With `log_snr` the schedule is variance preserving: alpha^2 is
        the sigmoid of the log SNR and sigma^2 is 1 - alpha^2. At t = 0 exactly the schedule returns
        clean data, also where the functions stop short of it (as `vdm` does). Times are found from
        levels by bisection, to the rounding of the functions. Where alpha^2 + sigma^2 is not 1,
        samples start from normal noise times its root (`start_scale`).

        Schedules are equal if their functions are. They pickle if their functions do. Functions
        cannot be written to a file: `to_dict` and whatever saves a schedule raise an error, and
        ``dataclasses.replace(plan, schedule=None)`` is a plan that can be saved.

        Args:
            alpha: the signal level at times in (0, T], positive (or 0 at T), 1 at t = 0 to 0.01. A
                function is called with a float64 array `(n,)` and gives as many float64 values (or
                one number for all). Functions of single numbers serve too, but take longer.
            sigma: the noise level, positive; it must come below 0.05 at t = 0.
            log_snr: log(alpha^2 / sigma^2), instead of both; it may be infinite at 0 and T.
            T: the noisiest time, positive.

        Raises:
            TypeError: an argument of the wrong type, or functions that do not give float64.
            ValueError: other functions than alpha and sigma, or log_snr; levels that are not
                finite, do not fall everywhere from data to noise, or do not begin at data. 1024
                even times are looked at, and a few near 0.
        """
        curve = function_curve(alpha, sigma, log_snr, T)
        given: dict[str, Any] = {"alpha": alpha, "sigma": sigma, "log_snr": log_snr}
        functions = ((name, value) for name, value in given.items() if value is not None)
        return cls("from_functions", (*functions, ("T", curve.end)), curve)

    # ---- levels

    @property
    def num_steps(self) -> int | None:
        """The number of steps T of a discrete schedule; None for a continuous one."""
        return self._curve.num_steps

    @property
    def T(self) -> float:
        """The noisiest time: `num_steps`, or 1.0 for a continuous schedule without another T."""
        curve = self._curve
        return curve.end if isinstance(curve, FunctionCurve) else float(curve.num_steps or 1.0)

    def alpha_bar(self, t: npt.ArrayLike) -> FloatArray:
        """Return alpha^2 / (alpha^2 + sigma^2) at t in [0, T], in the shape of t."""
        return np.exp(self._log_alpha_bar("alpha_bar", t))

    def alpha(self, t: npt.ArrayLike) -> FloatArray:
        """Return the signal level at t in [0, T], in the shape of t."""
        log = self._log_alpha_bar("alpha", t)
        if isinstance(self._curve, OWN_LEVELS):
            return self._curve.levels(np.asarray(t, np.float64))[0][()]
        return 1.0 - np.asarray(t, np.float64) if self.kind == "flow" else np.exp(0.5 * log)

    def sigma(self, t: npt.ArrayLike) -> FloatArray:
        """Return the noise level at t in [0, T], in the shape of t."""
        log = self._log_alpha_bar("sigma", t)
        if isinstance(self._curve, OWN_LEVELS):
            return self._curve.levels(np.asarray(t, np.float64))[1][()]
        return (
            1.0 * np.asarray(t, np.float64)
            if self.kind == "flow"
            else np.sqrt(np.abs(np.expm1(log)))
        )

    def levels(self, t: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return (alpha, sigma) at t in [0, T], each in the shape of t."""
        return self.alpha(t), self.sigma(t)

    def start_scale(self, t: float) -> float:
        """Return the factor of the standard normal noise that stands for x_t without data.

        It is ``sqrt(alpha^2 + sigma^2)``, the deviation of x_t for data of variance 1, for
        `exploding` schedules, about 80 for EDM, and those of functions alpha and sigma, and 1 for
        all others.
        """
        if not isinstance(self._curve, OWN_LEVELS):
            return 1.0
        return math.hypot(*(float(level) for level in self.levels(t)))

    def log_snr(self, t: npt.ArrayLike) -> FloatArray:
        """Return log(alpha^2 / sigma^2) at t in [0, T]: +inf at t = 0, -inf where alpha is 0."""
        log = self._log_alpha_bar("log_snr", t)
        with np.errstate(divide="ignore"):
            return log - np.log(-np.expm1(log))

    def time_at(self, alpha_bar: npt.ArrayLike) -> FloatArray:
        """Return the time t at which ``alpha_bar(t)`` has the given value, in the argument's shape.

        Near t = 0 alpha_bar is close to 1 and its own rounding limits t: `time_at_log_snr` is
        sharper.

        Args:
            alpha_bar: values in [alpha_bar(T), 1]; up to 1e-9 relative below the range gives T.

        Raises:
            ValueError: a value outside the range.
        """
        level = check_array("time_at", "alpha_bar", alpha_bar)
        lowest = float(self.alpha_bar(self.T))
        bad = (level > 1.0) | (level < lowest * (1.0 - 1e-9))
        if np.any(bad):
            got = level[bad].ravel()[0]
            raise ValueError(f"time_at: alpha_bar must be in [{lowest:.6g}, 1], got {got}")
        with np.errstate(divide="ignore"):
            return self._time(np.log(level))

    def time_at_log_snr(self, log_snr: npt.ArrayLike) -> FloatArray:
        """Return the time t at which ``log_snr(t)`` has the given value, in the argument's shape.

        Args:
            log_snr: values of log(alpha^2 / sigma^2), at least `log_snr(T)`; +inf gives 0.

        Raises:
            ValueError: a value below `log_snr(T)`.
        """
        level = check_array("time_at_log_snr", "log_snr", log_snr, infinite=True)
        lowest = float(self.log_snr(self.T))
        bad = level < lowest - 1e-9
        if np.any(bad):
            got = level[bad].ravel()[0]
            raise ValueError(f"time_at_log_snr: log_snr must be at least {lowest:.6g}, got {got}")
        return self._time(-np.logaddexp(0.0, -level))

    # ---- as data

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as a dictionary that JSON can store and `from_dict` reads back.

        Raises:
            TypeError: a schedule of functions.
        """
        if self.kind == "from_functions":
            raise TypeError(
                "NoiseSchedule.to_dict: schedule must not be made of functions, which no file can "
                f"hold, got {self!r}; save a plan without it: dataclasses.replace(plan, "
                "schedule=None)"
            )
        values = {k: list(_table(v)) if isinstance(v, tuple) else v for k, v in self.arguments}
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NoiseSchedule:
        """Return the schedule that a dictionary from `to_dict` describes.

        Raises:
            TypeError: `data` is no mapping, or holds a value of the wrong type.
            ValueError: `data` describes no schedule.
        """
        method, arguments = check_description("NoiseSchedule.from_dict", data)
        return getattr(cls, method)(**arguments)

    def __repr__(self) -> str:
        """Return the call that builds this schedule, with long tables shortened."""
        parts = [
            f"<{len(_table(value))} values>"
            if isinstance(value, tuple)
            else f"{key}={_named(value)}"
            for key, value in self.arguments
        ]
        return f"NoiseSchedule.{self.kind}({', '.join(parts)})"

    def _log_alpha_bar(self, function: str, t: npt.ArrayLike) -> FloatArray:
        """Check that the times are in [0, T] and return log alpha_bar there; it is 0 at t = 0."""
        times = check_array(function, "t", t)
        bad = (times < 0.0) | (times > self.T)
        if np.any(bad):
            raise ValueError(
                f"{function}: t must be in [0, {self.T:g}], got {times[bad].ravel()[0]}"
            )
        return np.where(times > 0.0, self._curve.log_alpha_bar(times), 0.0)[()]

    def _time(self, log_alpha_bar: FloatArray) -> FloatArray:
        """Return the times with these log alpha_bar, clamped to [0, T] against rounding errors."""
        times = np.where(log_alpha_bar < 0.0, self._curve.time_at(log_alpha_bar), 0.0)
        return np.minimum(np.maximum(times, 0.0), self.T)[()]


def _table(value: Any) -> tuple[float, ...]:
    """Return an argument that is a tuple, with the type of its entries."""
    return value


def _named(value: Any) -> str:
    """Return a function's name, and the representation of anything else."""
    return getattr(value, "__qualname__", None) or repr(value)
