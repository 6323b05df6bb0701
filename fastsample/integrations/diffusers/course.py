"""The noise levels of a run of a pipeline, and the rows that lead from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.plans.history import HistorySlots
from fastsample.plans.plan import Plan
from fastsample.plans.rows import (
    COLUMNS,
    HISTORY,
    clip_bounds,
    history_length,
    history_sources,
    row_table,
    x0_terms,
)
from fastsample.samplers.ddim import ddim_pairs
from fastsample.samplers.registry import METHODS

_NO_READS = (-1, -1, -1, -1)
_MOST_REPEATS = (
    2  # Rounding makes one, and a last step may be still; Heun's list has each level twice.
)


class Rows(NamedTuple):
    """The rows of a run from one of its timesteps on.

    Row numbers are those of the whole run, so that the noise of a row does not depend on where the
    run began; the rows before the beginning are empty.
    """

    table: FloatArray
    """`(R, 15)`."""
    groups: tuple[tuple[int, ...], ...]
    """For each timestep its rows: one that calls the network, then any that do not."""
    slots: HistorySlots
    """The buffers of the x0 estimates that later rows read."""


MakeRows: TypeAlias = Callable[[int, "float | None", "bool | None"], Rows]


@dataclass(frozen=True, eq=False)
class Course:
    """The noise levels that a pipeline's run goes through.

    Attributes:
        timesteps: `(K,)` what the pipeline passes to the network.
        nodes: `(K + 1,)` the times before the network's calls, and the last one.
        alphas: `(K + 1,)` signal levels there.
        sigmas: `(K + 1,)` noise levels there.
        rows: makes the rows: ``(begin, eta, rederive) -> Rows`` from a timestep's number on; eta
            and rederive of DDIM are None unless `step` was given others.
    """

    timesteps: Tensor
    nodes: FloatArray
    alphas: FloatArray
    sigmas: FloatArray
    rows: MakeRows


def method_course(
    function: str,
    conventions: Conventions,
    timesteps: Tensor,
    nodes: FloatArray,
    method: str,
    knobs: dict[str, Any],
    *,
    clips: bool = True,
) -> Course:
    """Return the course of a sampler through given times.

    Args:
        function: the caller's name, for messages.
        conventions: of the network.
        timesteps: `(K,)` the network's timesteps.
        nodes: `(K + 1,)` falling times; a step between equal ones changes nothing.
        method: a name of `fastsample.samplers.registry` that takes a grid.
        knobs: keyword arguments of the method.
        clips: whether x0 is clipped as the conventions say.
    """
    repeats = np.count_nonzero(np.diff(nodes) == 0.0)
    if np.any(np.diff(nodes) > 0) or repeats > _MOST_REPEATS:
        raise ValueError(
            f"{function}: the list of noise levels must fall from step to step, got times "
            f"{np.round(nodes, 4).tolist()!s:.80}; pass a grid of this package, such as "
            'grid="uniform"'
        )
    clip = conventions.clip if clips else None
    moves = np.diff(nodes) < 0.0
    steps = len(moves)

    def rows(begin: int, eta: float | None, rederive: bool | None) -> Rows:
        options = _options(method, knobs, eta, rederive)
        table = np.zeros((steps, len(COLUMNS)))
        for k in np.flatnonzero(~moves):
            table[k] = _still(conventions, nodes[k], clip)
        moving = begin + np.flatnonzero(moves[begin:])
        slots = HistorySlots(0, (), ())
        if len(moving):
            chain = np.append(nodes[moving], nodes[moving[-1] + 1])
            if options.get("order") is not None:
                options["order"] = min(options["order"], len(moving))
            if "lower_order_final" in METHODS[method].knobs:
                # The rule asks for the length of the whole run, and about its very last step.
                wanted = options.get("lower_order_final", True)
                options["lower_order_final"] = wanted and steps < 15 and bool(moves[-1])
            plan = METHODS[method].make(
                conventions.schedule,
                Grid(np.append(chain[chain > 0.0], 0.0)),
                last=float(chain[-1]),
                clip=clip,
                prediction=conventions.prediction,
                **options,
            )
            table[moving] = plan.rows
            slots = HistorySlots.of(plan)
        groups = tuple((k,) if k >= begin else () for k in range(steps))
        return Rows(table, groups, _spread(slots, moving.tolist(), steps))

    return Course(timesteps, nodes, *conventions.schedule.levels(nodes), rows)


def pairs_course(
    conventions: Conventions,
    timesteps: Tensor,
    nodes: FloatArray,
    stride: float,
    knobs: dict[str, Any],
    *,
    clips: bool,
) -> Course:
    """Return the course of `DDIMScheduler`, whose steps need not begin where the last one ended.

    Args:
        conventions: of the network.
        timesteps: `(K,)` the network's timesteps.
        nodes: `(K + 1,)` times; a step goes down from its time by the stride, or to the last one.
        stride: the trained number of steps divided by K, without the remainder.
        knobs: keyword arguments of DDIM.
        clips: whether x0 is clipped as the conventions say.
    """
    earlier = nodes[:-1] - stride
    earlier = np.where(earlier < 1.0, nodes[-1], earlier)
    steps = len(earlier)

    def rows(begin: int, eta: float | None, rederive: bool | None) -> Rows:
        options = _options("ddim", knobs, eta, rederive)
        table = ddim_pairs(
            conventions.schedule,
            nodes[:-1],
            earlier,
            clip=conventions.clip if clips else None,
            prediction=conventions.prediction,
            **options,
        )
        groups = tuple((k,) if k >= begin else () for k in range(steps))
        return Rows(table, groups, _spread(HistorySlots(0, (), ()), [], steps))

    return Course(timesteps, nodes, *conventions.schedule.levels(nodes), rows)


def plan_course(function: str, timesteps: Tensor, plan: Plan) -> Course:
    """Return the course of a plan.

    A run that begins part way lacks the x0's of the rows before: their weight goes to the row's own
    x0, which keeps the sum of the weights, and with it the first order.

    Args:
        function: the caller's name, for messages.
        timesteps: `(K,)` the network's timesteps in the rows that call it.
        plan: the plan.

    Raises:
        ValueError: a plan that a pipeline cannot run.
    """
    calls = plan.calls_network
    if not calls[0]:
        raise ValueError(
            f"{function}: plan must call the network in its first row, got one that does not; a "
            "pipeline calls it before every step"
        )
    if plan.is_guided:
        raise ValueError(
            f"{function}: plan must not be guided, since the pipeline guides; got {plan.method}"
        )
    first = np.flatnonzero(calls)
    ends = [*first[1:].tolist(), len(plan)]
    groups = tuple(tuple(range(a, b)) for a, b in zip(first.tolist(), ends, strict=True))

    def rows(begin: int, eta: float | None, rederive: bool | None) -> Rows:
        _options("plan", {}, eta, rederive)
        row = groups[begin][0]
        rest = plan if row == 0 else _plan_from(plan, row)
        table = np.concatenate((np.zeros((row, len(COLUMNS))), rest.rows))
        remaining = tuple(() if k < begin else groups[k] for k in range(len(groups)))
        numbers = list(range(row, len(plan)))
        return Rows(table, remaining, _spread(HistorySlots.of(rest), numbers, len(plan)))

    at = [*first.tolist(), len(plan)]
    return Course(timesteps, plan.nodes[at], plan.alphas[at], plan.sigmas[at], rows)


def as_timesteps(values: Sequence[float] | FloatArray) -> Tensor:
    """Return a network's timesteps as int64 where all are whole, else as float32."""
    array = np.asarray(values, np.float64)
    if np.all(np.abs(array - np.rint(array)) < 1e-9):
        return torch.as_tensor(np.rint(array).astype(np.int64))
    return torch.as_tensor(array.astype(np.float32))


def _options(
    method: str, knobs: dict[str, Any], eta: float | None, rederive: bool | None
) -> dict[str, Any]:
    """Return a method's keyword arguments with those of `step`, which only DDIM takes.

    Raises:
        ValueError: arguments of `step` with another method.
    """
    given = {"eta": eta, "rederive": rederive}
    changed = {name: value for name, value in given.items() if value is not None}
    if changed and method != "ddim":
        name, value = next(iter(changed.items()))
        name = "use_clipped_model_output" if name == "rederive" else name
        raise ValueError(
            f'step: {name} must be left out without method="ddim", got {value!r} with {method!r}'
        )
    return {**knobs, **changed}


def _still(conventions: Conventions, node: float, clip: float | None) -> FloatArray:
    """Return a row that changes nothing, with the x0 estimate of its level."""
    alpha, sigma = conventions.schedule.levels(np.array([node]))
    p, q = x0_terms("FastSampleScheduler", conventions.prediction, alpha, sigma)
    low, high = clip_bounds("FastSampleScheduler", clip)
    return row_table(1, a=1.0, p=p, q=q, lo=low, hi=high)


def _spread(slots: HistorySlots, numbers: list[int], rows: int) -> HistorySlots:
    """Return the buffers of a plan's rows when they have these numbers among more rows."""
    reads: list[tuple[int, int, int, int]] = [_NO_READS] * rows
    writes = [-1] * rows
    for number, read, write in zip(numbers, slots.reads, slots.writes, strict=True):
        reads[number], writes[number] = read, write
    return HistorySlots(slots.count, tuple(reads), tuple(writes))


def _plan_from(plan: Plan, row: int) -> Plan:
    """Return the plan's rows from one on, without looking back at those before it."""
    rows = np.array(plan.rows[row:])
    nodes = plan.nodes[row:]
    sources = history_sources(nodes, plan.calls_network[row:])
    own = COLUMNS.index("b")
    first = COLUMNS.index(HISTORY[0])
    for k, available in enumerate(sources):
        for n in range(len(available), history_length(rows[k])):
            rows[k, own] += rows[k, first + n]
            rows[k, first + n] = 0.0
    return replace(
        plan,
        nodes=nodes,
        rows=rows,
        alphas=plan.alphas[row:],
        sigmas=plan.sigmas[row:],
        times=plan.times[row:],
        check="none",
    )
