"""Makes the cost tables of a model's statistics, with one function per objective."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

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
    statistics: Statistics,
    objective: str,
    variance: str | None,
    decoder: DecoderChoice,
    method: str,
) -> CostTable | SecondOrderTable:
    """Return the costs of all steps by one objective; see `fastsample.Profile.costs`."""
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
        return second_order_table(statistics) if method == "dpm++" else trajectory_table(statistics)
    if objective == "mse":
        return mse_table(statistics)
    chosen = statistics.settings.variance if variance is None else variance
    return elbo_table(statistics, chosen, decoder)


def _separable(
    statistics: Statistics,
    edge: Literal["small", "large", "mse"],
    times: FloatArray,
    decoder: FloatArray,
) -> SeparableCosts:
    """Return step costs of the form ``A(s) + B(t) + P(s) Q(t)``, which need no table."""
    levels = vp_levels(statistics.schedule, np.append(0.0, statistics.times))
    error = np.append(0.0, statistics.error)
    return SeparableCosts(edge, times, *levels, error, np.append(np.inf, decoder), statistics.dims)


def elbo_table(statistics: Statistics, variance: str, decoder: DecoderChoice) -> CostTable:
    """Return a table of the variational bound's terms in nats; see `fastsample.Profile.costs`."""
    times = np.append(0.0, statistics.times)
    known = ("small", "large", "learned_range", "analytic")
    checked: Any = variance  # An array is refused here: `in` would compare its elements.
    if not isinstance(checked, str) or checked not in known:
        raise ValueError(
            'costs: variance must be "small", "large", "learned_range" or "analytic", '
            f"got {variance!r}"
        )
    if variance == "learned_range" and not statistics.settings.nodes:
        raise ValueError(
            'costs: variance must be "small", "large" or "analytic" for the profile of a model '
            'that learned none, got "learned_range"'
        )
    curve = statistics.decoder()
    respaced = isinstance(decoder, str) and decoder == "respaced"
    variances = (
        None
        if respaced
        else decoder_variances(decoder, statistics.schedule, statistics.times, curve)
    )
    if respaced and len(times) < 3:
        raise ValueError('costs: decoder must not be "respaced" for a single time, got one')
    if variances is not None and np.any(variances <= 0.0):
        raise ValueError(
            "costs: decoder must have a positive variance, got 0 from an error of 0 at "
            f"t = {statistics.times[np.argmin(variances)]:g}; pass variances"
        )
    last = np.full(len(statistics.times), np.inf) if variances is None else curve.costs(variances)
    costs = _step_costs(statistics, variance, last)
    last_two = None
    if respaced:
        table = costs.table() if isinstance(costs, SeparableCosts) else costs
        last_two = table + np.pad(_respaced_decoder(statistics, curve), (1, 0))
        table[1:, 0] = last_two[1:].min(axis=1)
        costs = table
    return CostTable(
        statistics.schedule,
        times,
        costs,
        objective="elbo",
        dims=statistics.dims,
        variance=variance,
        decoder_variance=variances,
        prior=statistics.prior,
        last_two=last_two,
        density=not statistics.has_bins,
    )


def _step_costs(
    statistics: Statistics, variance: str, decoder: FloatArray
) -> SeparableCosts | FloatArray:
    """Return the costs of the bound's steps, in separable form without a table where possible.

    Args:
        statistics: the model's statistics.
        variance: the reverse variance.
        decoder: `(n,)` costs of the last step from each time.
    """
    alpha, sigma = statistics.schedule.levels(statistics.times)
    preserving = np.allclose(alpha**2 + sigma**2, 1.0, rtol=0.0, atol=1e-9)
    edge = "large" if variance == "large" and preserving else "small"
    separable = _separable(statistics, edge, np.append(0.0, statistics.times), decoder)
    if variance == "analytic":
        return analytic_costs(separable)
    if variance == "small" or edge == "large":
        return separable
    table = separable.table()
    if variance == "large":
        # With "large" the costs are separable for variance-preserving processes only.
        a = log_ratios(sigma**2)
        with np.errstate(over="ignore", invalid="ignore"):
            table[1:, 1:] = table[1:, 1:] * np.exp(-a) + 0.5 * statistics.dims * excess(a)
        table[1:, 1:][~np.tri(len(sigma), k=-1, dtype=bool)] = np.inf
        return table
    levels = vp_levels(statistics.schedule, statistics.times)
    sums = (statistics.sums[name] / statistics.count for name in ("excess", "weighted"))
    table[1:, 1:] = learned_range_costs(levels, sigma**2, statistics.nodes, *sums)
    return table


def _respaced_decoder(statistics: Statistics, curve: Decoders) -> FloatArray:
    """Return `(n, n)` decoder costs from time s: row t, column s < t, +inf elsewhere.

    Its variance is the posterior variance of the step from t to s.
    """
    lower = np.tri(len(statistics.times), k=-1, dtype=bool)
    t, s = np.nonzero(lower)
    variance: FloatArray = np.ones(lower.shape)
    variance[lower] = respaced_variance(
        statistics.schedule, statistics.times[t], statistics.times[s]
    )
    return np.where(lower, np.transpose(curve.costs(np.transpose(variance))), np.inf)


def trajectory_table(statistics: Statistics) -> CostTable:
    """Return a table of mean squared distances of single DDIM steps from fine trajectories.

    The means are over dimensions and trajectories. Squares chose better grids than distances at 5
    to 20 steps on every model tried (mixtures and digits). Grids may start below T, because that
    costs less than a network call.
    """
    if statistics.trajectories is None or statistics.trajectories.count == 0:
        raise ValueError(
            'costs: objective must be "elbo" or "mse" for a profile without trajectories, '
            'got "trajectory"; pass trajectories=64 to profile'
        )
    times = np.append(0.0, statistics.times)
    squares = statistics.trajectories.squared_errors(*statistics.schedule.levels(times))
    return CostTable(
        statistics.schedule,
        times,
        squares / statistics.dims,
        objective="trajectory",
        dims=statistics.dims,
        start=statistics.trajectories.start_errors() / statistics.dims,
    )


def second_order_table(statistics: Statistics) -> SecondOrderTable:
    """Return the squared distances of `trajectory_table`, but for steps of DPM-Solver++ 2M.

    The cost of such a step depends on the step before it.
    """
    if len(statistics.times) > MOST_TIMES:
        raise ValueError(
            f'costs: method must be "ddim" for more than {MOST_TIMES} times, got "dpm++" for '
            f"{len(statistics.times)}"
        )
    first = trajectory_table(statistics)
    assert statistics.trajectories is not None
    assert first.start is not None
    times = np.append(0.0, statistics.times)
    squares = statistics.trajectories.second_order_errors(*statistics.schedule.levels(times))
    return SecondOrderTable(
        statistics.schedule, times, first.start[:, None] + first.costs, squares / statistics.dims
    )


def mse_table(statistics: Statistics) -> CostTable:
    """Return a table of costs ``(t - s) / T E||x0 - x0hat_t||^2``, also for the last step."""
    times = np.append(0.0, statistics.times)
    scaled = times / statistics.schedule.T
    costs = _separable(statistics, "mse", scaled, scaled[1:] * statistics.error)
    return CostTable(statistics.schedule, times, costs, objective="mse", dims=statistics.dims)
