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
        timesteps: `(K,)` what the network is told.
        nodes: `(K + 1,)` falling times; only the last two may be equal, for a step that changes
            nothing.
        method: a name of `fastsample.samplers.registry` that takes a grid.
        knobs: keyword arguments of the method.
        clips: whether x0 is clipped as the conventions say.
    """
    if np.any(np.diff(nodes)[:-1] >= 0) or nodes[-1] > nodes[-2]:
        raise ValueError(
            f"{function}: the list of noise levels must fall from step to step, got times "
            f"{np.round(nodes, 4).tolist()}; ask for fewer steps"
        )
    clip = conventions.clip if clips else None
    still = bool(nodes[-1] == nodes[-2])
    steps = len(nodes) - 1

    def rows(begin: int, eta: float | None, rederive: bool | None) -> Rows:
        options = dict(knobs)
        if eta is not None or rederive is not None:
            _check_ddim(method, eta)
            options |= {} if eta is None else {"eta": eta}
            options |= {} if rederive is None else {"rederive": rederive}
        chain = nodes[begin : steps + 1 - still]
        tables = [np.zeros((begin, len(COLUMNS)))]
        slots = HistorySlots(0, (), ())
        if len(chain) > 1:
            if options.get("order") is not None:
                options["order"] = min(options["order"], len(chain) - 1)
            if still and "lower_order_final" in options:
                options["lower_order_final"] = False  # The last step, which is still, is that one.
            plan = METHODS[method].make(
                conventions.schedule,
                Grid(np.append(chain[chain > 0.0], 0.0)),
                last=float(chain[-1]),
                clip=clip,
                prediction=conventions.prediction,
                **options,
            )
            tables.append(plan.rows)
            slots = HistorySlots.of(plan)
        if still:
            tables.append(_still(conventions, nodes[-1], clip))
        groups = tuple((k,) if k >= begin else () for k in range(steps))
        return Rows(np.concatenate(tables), groups, _padded(slots, begin, steps))

    return Course(timesteps, nodes, *conventions.schedule.levels(nodes), rows)


def pairs_course(
    conventions: Conventions, timesteps: Tensor, nodes: FloatArray, earlier: FloatArray
) -> Course:
    """Return the course of `DDIMScheduler`, whose steps need not begin where the last one ended.

    Args:
        conventions: of the network.
        timesteps: `(K,)` what the network is told.
        nodes: `(K + 1,)` times.
        earlier: `(K,)` the time after each step.
    """
    steps = len(earlier)

    def rows(begin: int, eta: float | None, rederive: bool | None) -> Rows:
        table = ddim_pairs(
            conventions.schedule,
            nodes[:-1],
            earlier,
            eta=eta or 0.0,
            rederive=bool(rederive),
            clip=conventions.clip,
            prediction=conventions.prediction,
        )
        groups = tuple((k,) if k >= begin else () for k in range(steps))
        return Rows(table, groups, _padded(HistorySlots(0, (), ()), 0, steps))

    return Course(timesteps, nodes, *conventions.schedule.levels(nodes), rows)


def plan_course(function: str, timesteps: Tensor, plan: Plan) -> Course:
    """Return the course of a plan.

    A run that begins part way lacks the x0's of the rows before: their weight goes to the row's own
    x0, which keeps the sum of the weights, and with it the first order.

    Args:
        function: the caller's name, for messages.
        timesteps: `(K,)` what the network is told in the rows that call it.
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
        if eta is not None or rederive is not None:
            _check_ddim("plan", eta)
        row = groups[begin][0]
        rest = plan if row == 0 else _plan_from(plan, row)
        table = np.concatenate((np.zeros((row, len(COLUMNS))), rest.rows))
        remaining = tuple(() if k < begin else groups[k] for k in range(len(groups)))
        return Rows(table, remaining, _padded(HistorySlots.of(rest), row, len(plan)))

    at = [*first.tolist(), len(plan)]
    return Course(timesteps, plan.nodes[at], plan.alphas[at], plan.sigmas[at], rows)


def times_course(
    conventions: Conventions, timesteps: Tensor, nodes: FloatArray, rows: MakeRows
) -> Course:
    """Return a course whose rows are made elsewhere."""
    return Course(timesteps, nodes, *conventions.schedule.levels(nodes), rows)


def as_timesteps(values: Sequence[float] | FloatArray) -> Tensor:
    """Return a network's timesteps as int64 where all are whole, else as float32."""
    array = np.asarray(values, np.float64)
    if np.all(np.abs(array - np.rint(array)) < 1e-9):
        return torch.as_tensor(np.rint(array).astype(np.int64))
    return torch.as_tensor(array.astype(np.float32))


def _check_ddim(method: str, eta: float | None) -> None:
    """Raise ValueError for arguments of `step` that only DDIM has, with another method."""
    if method != "ddim":
        name, value = ("use_clipped_model_output", True) if eta is None else ("eta", eta)
        raise ValueError(
            f'step: {name} must be left out without method="ddim", got {value!r} with {method!r}'
        )


def _still(conventions: Conventions, node: float, clip: float | None) -> FloatArray:
    """Return a row that changes nothing, with the x0 estimate of its level."""
    alpha, sigma = conventions.schedule.levels(np.array([node]))
    p, q = x0_terms("FastSampleScheduler", conventions.prediction, alpha, sigma)
    low, high = clip_bounds("FastSampleScheduler", clip)
    return row_table(1, a=1.0, p=p, q=q, lo=low, hi=high)


def _padded(slots: HistorySlots, begin: int, rows: int) -> HistorySlots:
    """Return the buffers of rows that begin at a later row of a run of so many rows."""
    after = rows - begin - len(slots.reads)
    return HistorySlots(
        slots.count,
        (_NO_READS,) * begin + slots.reads + (_NO_READS,) * after,
        (-1,) * begin + slots.writes + (-1,) * after,
    )


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
