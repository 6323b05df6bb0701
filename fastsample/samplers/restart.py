"""Restart sampling, and plans whose rows go back up to a noisier node.

Such a row makes no network call: ``x = a x + d z`` with ``a = alpha_t / alpha_s`` and ``d^2 =
sigma_t^2 - a^2 sigma_s^2`` adds the noise of the forward process from level s to the noisier t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastsample._support.checks import FloatArray, check_integer, check_real
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction, row_table
from fastsample.samplers.compile import Last, grid_levels
from fastsample.samplers.ddim import ddim
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.samplers.unipc import unipc
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition

Interval: TypeAlias = tuple[float, float, int] | tuple[float, float, int, int]
"""(t_min, t_max, repeats) or (t_min, t_max, repeats, steps), in times of the schedule."""

_BASES: dict[str, Callable[..., Plan]] = {"ddim": ddim, "dpm++": dpm_solver, "unipc": unipc}


class Rise(NamedTuple):
    """A place of a plan at which its rows return to a noisier node and come down again.

    Attributes:
        turn: the number of the node from which the rows return; they end there once more after
            each return.
        times: the nodes on the way down: the noisier one first, that of `turn` last.
        repeats: how often the rows return.
    """

    turn: int
    times: FloatArray
    repeats: int


def restart(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    intervals: Sequence[Interval] = (),
    base: str = "ddim",
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of Restart sampling: a deterministic sampler that adds noise in between.

    Xu et al. 2023, "Restart Sampling for Improving Generative Processes" (arXiv:2306.14878),
    algorithm 1: when the sampler comes to t_min, the noise of the forward process from t_min to
    t_max is added, and the sampler runs from t_max to t_min again, `repeats` times. Fresh noise
    contracts the errors that were made before, and the deterministic rows between make small ones.

    Each interval is ``(t_min, t_max, repeats)`` or ``(t_min, t_max, repeats, steps)``. t_min stands
    for the node of the grid nearest to it (not the first one or the last one), as in the authors'
    code. Without `steps`, t_max stands for the nearest node above that, and the rows between are
    those of the grid. With `steps`, the rows start at t_max itself; their number is `steps`, and
    they are spread as the grid is there (evenly in the number of its node), at whole times if the
    grid and t_max are whole. Without intervals the plan is that of the base sampler.

    Args:
        schedule: noise levels; only alpha and sigma at the times are read.
        grid: K times and the final 0: the rows without the intervals. The plan makes K network
            calls and `repeats` times `steps` more for each interval (`Plan.calls`).
        intervals: see above, in any order; noisier ones come first.
        base: the deterministic sampler, "ddim", "dpm++" or "unipc" (of second order). A multistep
            sampler begins anew after each return, at first order.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan that draws noise in the rows that return, and in no others.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a value out of range, an interval without nodes of the grid, a grid that starts
            above T, or an epsilon prediction where alpha is 0.
    """
    make = _BASES.get(base) if isinstance(base, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if make is None:
        raise ValueError(f"restart: base must be one of {list(_BASES)}, got {base!r}")
    nodes = grid_levels("restart", schedule, grid, last).nodes
    rises = sorted(
        (_rise(schedule, nodes, i, interval) for i, interval in enumerate(_listed(intervals))),
        key=lambda rise: rise.turn,
    )

    def down(times: FloatArray) -> Plan:
        """Return the base sampler's plan along times that end where the whole plan does."""
        end = float(times[-1])
        return make(
            schedule,
            Grid(np.append(times[times > 0.0], 0.0)),
            last=end,
            clip=clip,
            prediction=prediction,
        )

    plan = with_rises("restart", nodes, rises, down)
    texts = [
        f"{rise.times[-1]:g}..{rise.times[0]:g} x {rise.repeats} of {len(rise.times) - 1}"
        for rise in rises
    ]
    return replace(plan, method=f"restart({', '.join([plan.method, *texts])})")


def with_rises(
    function: str, nodes: FloatArray, rises: Sequence[Rise], down: Callable[[FloatArray], Plan]
) -> Plan:
    """Return the plan that follows nodes down and returns to noisier ones at some of them.

    Args:
        function: the caller's name, for messages.
        nodes: `(K + 1,)` falling times.
        rises: where the rows return, in the order in which they are run (turns do not fall).
        down: makes a plan along falling times that end at the last node. It is cut where the next
            rise begins.

    Raises:
        ValueError: a plan from `down` that has not a row for each time.
    """
    parts: list[Plan] = []
    times = nodes
    for turn, back, repeats in rises:
        way = np.concatenate((back, nodes[turn + 1 :]))
        parts.append(down(times).until(float(nodes[turn])))
        parts.extend([down(way).until(float(nodes[turn]))] * (repeats - 1))
        times = way
    parts.append(down(times))
    return joined(function, parts)


def joined(function: str, parts: Sequence[Plan]) -> Plan:
    """Return the plan that runs plans one after the other, with rows that rise in between.

    Each part after the first starts at or above the node at which the one before it ends. A row
    without a network call leads there, which draws the noise of the forward process; none is
    needed if the nodes are the same.

    Args:
        function: the caller's name, for messages.
        parts: plans for the same schedule and prediction, under the same check.

    Raises:
        ValueError: a part that starts below the end of the one before.
    """
    first = parts[0]
    arrays: dict[str, list[FloatArray]] = {
        name: [getattr(first, name)] for name in ("nodes", "alphas", "sigmas", "rows", "times")
    }
    for before, after in pairwise(parts):
        s, t = float(before.nodes[-1]), float(after.nodes[0])
        if t < s:
            raise ValueError(
                f"{function}: parts must start where the last ended, got {t:g} < {s:g}"
            )
        skipped = 1 if s == t else 0
        if not skipped:
            arrays["rows"].append(
                rise_row(before.alphas[-1:], before.sigmas[-1:], after.alphas[:1], after.sigmas[:1])
            )
            arrays["times"].append(np.array([s]))
        for name in ("nodes", "alphas", "sigmas"):
            arrays[name].append(getattr(after, name)[skipped:])
        arrays["rows"].append(after.rows)
        arrays["times"].append(after.times)
    whole: dict[str, Any] = {name: np.concatenate(values) for name, values in arrays.items()}
    return replace(first, **whole)


def rise_row(
    alpha_s: FloatArray, sigma_s: FloatArray, alpha_t: FloatArray, sigma_t: FloatArray
) -> FloatArray:
    """Return the row `(1, 15)` that adds the noise between two levels s (cleaner) and t.

    It is the transition q(x_t | x_s) of the forward process, without a network call.

    Args:
        alpha_s: signal level before the row, `(1,)`, like the others.
        sigma_s: noise level before the row.
        alpha_t: signal level after the row.
        sigma_t: noise level after the row.
    """
    pair = transition(alpha_s, sigma_s, alpha_t, sigma_t)
    return row_table(1, a=pair.alpha, d=np.sqrt(pair.variance))


def _listed(intervals: Any) -> Sequence[Any]:
    """Return the intervals as a sequence; TypeError for anything else."""
    if not isinstance(intervals, (tuple, list)):
        raise TypeError(
            f"restart: intervals must be a list of (t_min, t_max, repeats[, steps]), "
            f"got {intervals!r}"
        )
    return intervals  # pyright: ignore[reportUnknownVariableType]


def _rise(schedule: NoiseSchedule, nodes: FloatArray, number: int, interval: Any) -> Rise:
    """Return where the rows of an interval return from, and the nodes of the way down.

    Args:
        schedule: noise levels.
        nodes: `(K + 1,)` the nodes without intervals.
        number: the interval's position, for messages.
        interval: the caller's.
    """
    name = f"intervals[{number}]"
    if not isinstance(interval, (tuple, list)) or len(interval) not in (3, 4):  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(
            f"restart: {name} must be (t_min, t_max, repeats) or (t_min, t_max, repeats, steps), "
            f"got {interval!r}"
        )
    values: list[Any] = list(interval)  # pyright: ignore[reportUnknownArgumentType]
    low = check_real("restart", f"t_min of {name}", values[0], 0.0, schedule.T)
    high = check_real("restart", f"t_max of {name}", values[1], 0.0, schedule.T)
    repeats = check_integer("restart", f"repeats of {name}", values[2], 1)
    if not 0.0 < low < high:
        raise ValueError(f"restart: {name} must have 0 < t_min < t_max, got {interval!r}")
    if len(nodes) < 3:
        raise ValueError(
            f"restart: grid must have nodes between its ends for intervals, got {nodes.tolist()}"
        )
    turn = 1 + int(np.argmin(np.abs(nodes[1:-1] - low)))
    if len(values) == 3:
        top = int(np.argmin(np.abs(nodes[:turn] - high)))
        return Rise(turn, nodes[top : turn + 1], repeats)
    steps = check_integer("restart", f"steps of {name}", values[3], 1)
    if not nodes[turn] < high:
        raise ValueError(
            f"restart: t_max of {name} must be above the node nearest to t_min, {nodes[turn]:g}, "
            f"got {high:g}"
        )
    return Rise(turn, _spread(name, nodes, turn, high, steps), repeats)


def _spread(name: str, nodes: FloatArray, turn: int, high: float, steps: int) -> FloatArray:
    """Return `(steps + 1,)` times from `high` to the node `turn`, spread as the nodes are there.

    They are whole if all nodes and `high` are.
    """
    numbers = np.arange(len(nodes), dtype=np.float64)
    start = float(np.interp(high, nodes[::-1], numbers[::-1]))
    times = np.interp(np.linspace(start, turn, steps + 1), numbers, nodes)
    times[0] = high
    if not np.all(np.append(nodes, high) == np.rint(np.append(nodes, high))):
        return times
    if steps > high - nodes[turn]:
        raise ValueError(
            f"restart: steps of {name} must be at most the number of whole times from "
            f"{nodes[turn]:g} to {high:g}, got {steps}"
        )
    times = np.rint(times)
    for k in range(steps - 1, 0, -1):  # move apart what rounding made equal
        times[k] = max(times[k], times[k + 1] + 1.0)
    for k in range(1, steps):
        times[k] = min(times[k], times[k - 1] - 1.0)
    return times
