"""Computes the cost of a step from t to s: its term of the evidence lower bound (ELBO).

One error per time is enough to compute them all: Watson et al. 2021 (arXiv:2106.03802) after Ho et
al. 2020 (arXiv:2006.11239). With D dimensions, ``m_t = E||x0 - x0hat_t||^2`` summed over them, and
``a = log(sigma_t^2 / sigma_s^2)`` of the variance-preserving process that has the schedule's
signal-to-noise ratio, a step costs in nats, by the variance of the reverse step:

    small       1/2 (SNR_s - SNR_t) m_t
    large       1/2 D (a - 1 + e^-a) + 1/2 (alpha_bar_s - alpha_bar_t) / sigma_t^4 m_t
    analytic    1/2 D log(1 + (SNR_s - SNR_t) m_t / D)

"analytic" is the best variance that is the same for all dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_array, check_integer, check_vector, frozen
from fastsample.planning.decoder import GaussianDecoder
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import snr_drop, transition

Decoder: TypeAlias = Literal["optimal", "forward", "posterior"] | npt.ArrayLike
Edge: TypeAlias = Literal["small", "large", "mse"]

_EDGES: dict[str, int] = {"small": 0, "large": 1, "mse": 2}  # as enum StepCost in shortest_path.h


def elbo_costs(
    schedule: NoiseSchedule,
    error: npt.ArrayLike,
    *,
    dims: int,
    variance: Literal["small", "large", "analytic"] = "small",
    decoder: Decoder = "optimal",
) -> FloatArray:
    """Return the ELBO cost `(T + 1, T + 1)` in nats of every step t -> s, summed over dimensions.

    Watson et al. 2021 (arXiv:2106.03802); the module explains the terms.

    Args:
        schedule: noise levels, with whole steps.
        error: `(T,)`, ``error[t - 1] = E||x0 - x0hat_t||^2``, summed over dimensions, mean over
            data and noise.
        dims: D, dimensions of one sample.
        variance: variance of the reverse steps: the posterior's ("small"), the forward step's
            ("large"), or the best single number for these errors ("analytic": Bao et al. 2022,
            "Analytic-DPM", arXiv:2201.06503).
        decoder: the last step's cost ``-E log p(x0 | x_t)``: `(T,)` values, or a name as in
            `decoder_costs`.

    Returns:
        `(T + 1, T + 1)`, row t, column s; +inf where s >= t.

    Raises:
        ValueError: a schedule without whole steps, or values of the wrong shape or sign.
    """
    errors, steps = _checked_errors("elbo_costs", schedule, error)
    size = check_integer("elbo_costs", "dims", dims, 1)
    last = decoder_costs(schedule, error, dims=size, decoder=decoder)
    separable = SeparableCosts(
        "large" if variance == "large" else "small",
        np.arange(steps + 1.0),
        *vp_levels(schedule, np.arange(steps + 1)),
        np.append(0.0, errors),
        np.append(np.inf, last),
        size,
    )
    if variance in ("small", "large"):
        return separable.table()
    if variance != "analytic":
        raise ValueError(
            f'elbo_costs: variance must be "small", "large" or "analytic", got {variance!r}'
        )
    return analytic_costs(separable)


def analytic_costs(small: SeparableCosts) -> FloatArray:
    """Return the `(n, n)` costs for the "analytic" variance, computed from those for "small"."""
    table = small.table()
    inner = np.tri(len(table), k=-1, dtype=bool)
    inner[:, 0] = False
    table[inner] = 0.5 * small.dims * np.log1p(2.0 * table[inner] / small.dims)
    return table


def decoder_costs(
    schedule: NoiseSchedule, error: npt.ArrayLike, *, dims: int, decoder: Decoder = "optimal"
) -> FloatArray:
    """Return the cost `(T,)` in nats of the last step (to 0) from every time.

    The posterior's variance is 0 at s = 0, so the last step needs a variance v of its own. For
    continuous data the decoder is Gaussian and costs ``D / 2 log(2 pi v) + m_t / (2 v)``, with v

    - "optimal": ``m_t / D``, never worse than any other that depends on t alone;
    - "forward": ``1 - alpha_bar_t``, the forward step's;
    - "posterior": as "forward", except from t = 1, where it is the posterior variance of the step
      from 2 to 1, as in Analytic-DPM and, on the full chain, improved-diffusion.

    Args:
        schedule: noise levels, with whole steps.
        error: as for `elbo_costs`.
        dims: D, dimensions of one sample.
        decoder: a name, or the `(T,)` costs themselves, which are checked and returned.

    Raises:
        ValueError: an unknown name, or values of the wrong shape or sign.
    """
    errors, steps = _checked_errors("decoder_costs", schedule, error)
    if not isinstance(decoder, str):
        costs = check_array("decoder_costs", "decoder", decoder, infinite=True)
        if costs.shape != (steps,) or np.any(np.isnan(costs) | np.isneginf(costs)):
            raise ValueError(
                f"decoder_costs: decoder must hold {steps} costs, finite or +inf, "
                f"got shape {costs.shape}"
            )
        return costs
    _, noise = vp_levels(schedule, np.arange(1, steps + 1))
    if decoder == "optimal":
        variance = errors / dims
    elif decoder in ("forward", "posterior"):
        variance: FloatArray = np.array(noise)
        if decoder == "posterior" and steps > 1:
            (a1, a2), (s1, s2) = schedule.levels([1, 2])
            variance[0] = transition(a1, s1, a2, s2).posterior_variance
    else:
        raise ValueError(
            'decoder_costs: decoder must be "optimal", "forward", "posterior" or an array, '
            f"got {decoder!r}"
        )
    return GaussianDecoder(errors, dims).costs(variance)


@dataclass(frozen=True, eq=False)
class SeparableCosts:
    """Step costs of the form ``A(s) + B(t) + P(s) Q(t)``, stored without their `(n, n)` table.

    The planner uses the lower envelope of the lines ``A(s) + P(s) Q`` instead of the table. That
    takes ``O(n log n)`` time per number of steps, so that continuous-time models can be planned on
    100,000 times.

    Attributes:
        edge: the form of the costs: "small" or "large" (the variances in the module's text), or
            "mse": ``(t - s) m_t``, the paper's reweighted objective.
        times: `(n,)` rising from 0.
        alpha_bar: `(n,)` levels, 1 at t = 0.
        noise: `(n,)` 1 - alpha_bar, exact near 0.
        error: `(n,)` m_t; the first entry is not used.
        decoder: `(n,)` costs of the last step, from each time to 0; the first entry is not used.
        dims: D, dimensions of one sample.
    """

    edge: Edge
    times: FloatArray
    alpha_bar: FloatArray
    noise: FloatArray
    error: FloatArray
    decoder: FloatArray
    dims: int

    def __post_init__(self) -> None:
        if self.edge not in _EDGES:
            raise ValueError(f"SeparableCosts: edge must be one of {list(_EDGES)}, got {self.edge}")
        for name in ("times", "alpha_bar", "noise", "error", "decoder"):
            values = check_array("SeparableCosts", name, getattr(self, name), infinite=True)
            if values.shape != (len(self.times),) or len(values) < 2:
                raise ValueError(
                    f"SeparableCosts: {name} must have shape ({len(self.times)},) with at least 2 "
                    f"entries, got {values.shape}"
                )
            if np.any(np.isnan(values[1:]) | np.isneginf(values[1:])):
                raise ValueError(f"SeparableCosts: {name} must hold no NaN or -inf")
            object.__setattr__(self, name, frozen(values))
        for name, rising in (("times", 1.0), ("noise", 1.0), ("alpha_bar", -1.0)):
            least = 0.0 if name == "times" else -1e-300
            if np.any(rising * np.diff(getattr(self, name)) <= least):
                word = "rise" if rising > 0 else "fall"
                raise ValueError(f"SeparableCosts: {name} must {word}, got a step that does not")
        # Near T noise rounds to 1, and near 0 alpha_bar does, while the other still changes: only
        # times that agree in both have the same level.
        if self.edge != "mse" and np.any(
            (np.diff(self.noise) == 0) & (np.diff(self.alpha_bar) == 0)
        ):
            raise ValueError("SeparableCosts: noise must differ between times, got two alike")
        if not np.all(np.isfinite(self.error[1:])):
            raise ValueError("SeparableCosts: error must be finite")

    def table(self) -> FloatArray:
        """Return the `(n, n)` table, row t, column s; +inf where s >= t."""
        n = len(self.times)
        position = np.arange(n)
        table = self.at(position[:, None], position[None, :])
        return np.where(np.tri(n, k=-1, dtype=bool), table, np.inf)

    def at(self, t: npt.NDArray[np.int64], s: npt.NDArray[np.int64]) -> FloatArray:
        """Return the costs of steps from positions t to positions s < t, in their common shape."""
        a, v, m = self.alpha_bar, self.noise, self.error
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.edge == "mse":
                inner = (self.times[t] - self.times[s]) * m[t]
            else:
                inner = 0.5 * snr_drop(a[t], v[t], a[s], v[s]) * m[t]
                # With the "large" variance e^-a = v_s / v_t scales this term, and D adds another.
                if self.edge == "large":
                    log_ratio = np.log1p((v[t] - v[s]) / v[s])
                    inner = inner * (v[s] / v[t]) + 0.5 * self.dims * excess(log_ratio)
        return np.where(s == 0, self.decoder[t], inner)

    def operands(self) -> tuple[int | float, ...]:
        """Return the leading arguments of `_native.separable_paths`: array addresses and sizes."""
        arrays = (self.times, self.alpha_bar, self.noise, self.error, self.decoder)
        addresses = (array.ctypes.data for array in arrays)
        return (_EDGES[self.edge], *addresses, float(self.dims), len(self.times))


def excess(x: FloatArray) -> FloatArray:
    """Return ``x - 1 + exp(-x)``, by its power series for small x, where it would cancel."""
    series = np.zeros_like(x)
    small = np.minimum(x, 0.5)
    for n in range(14, 1, -1):
        series = (1.0 - series) * small / n
    return np.where(x > 0.5, np.expm1(-x) + x, series * small)


def vp_levels(schedule: NoiseSchedule, times: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return (alpha_bar, 1 - alpha_bar) of the variance-preserving process with the same SNR."""
    alpha, sigma = schedule.levels(times)
    total = alpha**2 + sigma**2
    return alpha**2 / total, sigma**2 / total


def _checked_errors(
    function: str, schedule: NoiseSchedule, error: npt.ArrayLike
) -> tuple[FloatArray, int]:
    """Check the schedule and the errors `(T,)`, and return (errors, T)."""
    if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{function}: schedule must be a NoiseSchedule, got {schedule!r}")
    if schedule.num_steps is None:
        raise ValueError(f"{function}: schedule must have whole steps, got {schedule!r}")
    errors = check_vector(function, "error", error)
    if errors.shape != (schedule.num_steps,):
        raise ValueError(
            f"{function}: error must have shape ({schedule.num_steps},), got {errors.shape}"
        )
    if np.any(errors < 0.0):
        raise ValueError(f"{function}: error must not be negative, got {errors.min():g}")
    return errors, schedule.num_steps
