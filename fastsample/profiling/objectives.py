"""Cost tables of a model's statistics, one function per objective."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray
from fastsample.planning.cost_table import CostTable
from fastsample.planning.decoder import Decoders, decoder_variances, respaced_variance
from fastsample.planning.elbo import SeparableCosts, analytic_costs, excess, vp_levels
from fastsample.planning.multistep_path import MOST_TIMES, SecondOrderTable
from fastsample.profiling.learned_range import learned_range_costs, log_ratios
from fastsample.profiling.statistics import Statistics

DecoderChoice: TypeAlias = Literal["optimal", "forward", "posterior", "respaced"] | npt.ArrayLike


def cost_table(
    found: Statistics,
    objective: str,
    variance: str | None,
    decoder: DecoderChoice,
    method: str,
) -> CostTable | SecondOrderTable:
    """The table of `fastsample.Profile.costs`."""
    if objective not in ("elbo", "mse", "trajectory"):
        raise ValueError(
            f'costs: objective must be "elbo", "mse" or "trajectory", got {objective!r}'
        )
    if objective != "elbo":
        for name, value, default in (
            ("variance", variance, None),
            ("decoder", decoder, "optimal"),
        ):
            if value is not default and not (isinstance(value, str) and value == default):
                raise ValueError(
                    f'costs: {name} must be left out with objective="{objective}", got {value!r}'
                )
    if method not in ("ddim", "dpm++") or (method == "dpm++" and objective != "trajectory"):
        raise ValueError(
            f'costs: method must be "ddim", or "dpm++" with objective="trajectory", got {method!r}'
        )
    if objective == "trajectory":
        return second_order_table(found) if method == "dpm++" else trajectory_table(found)
    if objective == "mse":
        return mse_table(found)
    chosen = found.settings.variance if variance is None else variance
    return elbo_table(found, chosen, decoder)


def _separable(
    found: Statistics,
    edge: Literal["small", "large", "mse"],
    times: FloatArray,
    decoder: FloatArray,
) -> SeparableCosts:
    levels = vp_levels(found.schedule, np.append(0.0, found.times))
    error = np.append(0.0, found.error)
    return SeparableCosts(edge, times, *levels, error, np.append(np.inf, decoder), found.dims)


def elbo_table(found: Statistics, variance: str, decoder: DecoderChoice) -> CostTable:
    """The bound's terms, in nats; see `fastsample.Profile.costs`."""
    times = np.append(0.0, found.times)
    known = ("small", "large", "learned_range", "analytic")
    if not isinstance(variance, str) or variance not in known:
        raise ValueError(
            'costs: variance must be "small", "large", "learned_range" or "analytic", '
            f"got {variance!r}"
        )
    if variance == "learned_range" and not found.settings.nodes:
        raise ValueError(
            'costs: variance must be "small", "large" or "analytic" for the profile of a model '
            'that learned none, got "learned_range"'
        )
    curve = found.decoder()
    respaced = isinstance(decoder, str) and decoder == "respaced"
    chosen = None if respaced else decoder_variances(decoder, found.schedule, found.times, curve)
    if respaced and len(times) < 3:
        raise ValueError('costs: decoder must not be "respaced" for a single time, got one')
    if chosen is not None and np.any(chosen <= 0.0):
        raise ValueError(
            "costs: decoder must have a positive variance, got 0 from an error of 0 at "
            f"t = {found.times[np.argmin(chosen)]:g}; pass variances"
        )
    last = np.full(len(found.times), np.inf) if chosen is None else curve.costs(chosen)
    costs = _step_costs(found, variance, last)
    last_two = None
    if respaced:
        table = costs.table() if isinstance(costs, SeparableCosts) else costs
        last_two = table + np.pad(_respaced_decoder(found, curve), (1, 0))
        table[1:, 0] = last_two[1:].min(axis=1)
        costs = table
    return CostTable(
        found.schedule,
        times,
        costs,
        objective="elbo",
        dims=found.dims,
        variance=variance,
        decoder_variance=chosen,
        prior=found.prior,
        last_two=last_two,
    )


def _step_costs(
    found: Statistics, variance: str, decoder: FloatArray
) -> SeparableCosts | FloatArray:
    """Separable where the planner can do without the table."""
    alpha, sigma = found.schedule.levels(found.times)
    preserving = np.allclose(alpha**2 + sigma**2, 1.0, rtol=0.0, atol=1e-9)
    edge = "large" if variance == "large" and preserving else "small"
    separable = _separable(found, edge, np.append(0.0, found.times), decoder)
    if variance == "analytic":
        return analytic_costs(separable)
    if variance == "small" or edge == "large":
        return separable
    table = separable.table()
    if variance == "large":
        # Not separable where the process has a scale of its own.
        a = log_ratios(sigma**2)
        with np.errstate(over="ignore", invalid="ignore"):
            table[1:, 1:] = table[1:, 1:] * np.exp(-a) + 0.5 * found.dims * excess(a)
        table[1:, 1:][~np.tri(len(sigma), k=-1, dtype=bool)] = np.inf
        return table
    levels = vp_levels(found.schedule, found.times)
    sums = (found.sums[name] / found.count for name in ("excess", "weighted"))
    table[1:, 1:] = learned_range_costs(levels, sigma**2, found.nodes, *sums)
    return table


def _respaced_decoder(found: Statistics, curve: Decoders) -> FloatArray:
    """`(n, n)` the decoder's cost from s at the posterior variance of (t, s), row t."""
    lower = np.tri(len(found.times), k=-1, dtype=bool)
    t, s = np.nonzero(lower)
    variance = np.ones(lower.shape)
    variance[lower] = respaced_variance(found.schedule, found.times[t], found.times[s])
    return np.where(lower, curve.costs(variance.T).T, np.inf)


def trajectory_table(found: Statistics) -> CostTable:
    """How far one DDIM step strays: squared distance, mean over dimensions and trajectories.

    Squares, because they chose better grids than distances at 5 to 20 steps on every model tried
    (mixtures and digits); starting times below T, because those cost less than a call.
    """
    if found.trajectories is None or found.trajectories.count == 0:
        raise ValueError(
            'costs: objective must be "elbo" or "mse" for a profile without trajectories, '
            'got "trajectory"; pass trajectories=64 to profile'
        )
    times = np.append(0.0, found.times)
    squares = found.trajectories.squared_errors(*found.schedule.levels(times))
    return CostTable(
        found.schedule,
        times,
        squares / found.dims,
        objective="trajectory",
        dims=found.dims,
        start=found.trajectories.start_errors() / found.dims,
    )


def second_order_table(found: Statistics) -> SecondOrderTable:
    """The same for steps of DPM-Solver++ 2M, whose cost depends on the step before."""
    if len(found.times) > MOST_TIMES:
        raise ValueError(
            f'costs: method must be "ddim" for more than {MOST_TIMES} times, got "dpm++" for '
            f"{len(found.times)}"
        )
    first = trajectory_table(found)
    assert found.trajectories is not None
    assert first.start is not None
    times = np.append(0.0, found.times)
    squares = found.trajectories.second_order_errors(*found.schedule.levels(times))
    return SecondOrderTable(
        found.schedule, times, first.start[:, None] + first.costs, squares / found.dims
    )


def mse_table(found: Statistics) -> CostTable:
    """The reweighted objective ``(t - s) / T m_t``; the last step counts like any other."""
    times = np.append(0.0, found.times)
    scaled = times / found.schedule.T
    costs = _separable(found, "mse", scaled, scaled[1:] * found.error)
    return CostTable(found.schedule, times, costs, objective="mse", dims=found.dims)
