"""Adds RePaint's jumps to a plan: rows that return to a noisier node and come down again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from fastsample._support.checks import FloatArray, check_integer
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.samplers.restart import Rise, with_rises
from fastsample.sampling.resolve import PlanRequest, Resolved, resolve


def with_jumps(denoiser: Denoiser, request: PlanRequest, base: Resolved, jumps: Any) -> Plan:
    """Return the plan of a request with jumps back to noisier nodes.

    RePaint (Lugmayr et al. 2022, arXiv:2201.09865) jumps back from every `length`-th node, counted
    from the last one before data; its code never returns from data themselves.

    Args:
        denoiser: the model.
        request: the arguments of the caller.
        base: the plan of the request, without jumps.
        jumps: (length, repeats), or None.

    Raises:
        TypeError: jumps of the wrong type.
        ValueError: jumps out of range, or in a plan that cannot have them.
    """
    plan = base.plan
    if jumps is None:
        return plan
    pair: Any = jumps
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"inpaint: jumps must be (length, repeats) or None, got {jumps!r}")
    length, repeats = (
        check_integer("inpaint", f"jumps[{i}]", value, 1)
        for i, value in enumerate(cast("list[object]", pair))
    )
    nodes, rows = plan.nodes, len(plan)
    if np.any(np.diff(nodes) > 0.0):
        raise ValueError(
            "inpaint: jumps must be left out with a plan that returns to noisier nodes, got "
            f"{jumps}"
        )
    if length >= rows:
        raise ValueError(
            f"inpaint: jumps must have a length below the number of rows {rows}, got {length}"
        )
    if plan.needs_history and base.method in ("given", "tuned"):
        raise ValueError(
            "inpaint: jumps must be left out with a plan that reads earlier x0's, got "
            f"{plan.method}; name the method instead, which begins anew after a jump"
        )
    turns = range((rows - 1) % length + length, rows, length)
    rises = [Rise(turn, nodes[turn - length : turn + 1], repeats) for turn in turns]

    def down(times: FloatArray) -> Plan:
        """Return the rows from a node of the plan to its last one."""
        first = int(np.flatnonzero(nodes == times[0])[0])
        if first == 0 or not plan.needs_history:
            return _rows_from(plan, first)
        return resolve("inpaint", denoiser, _begun_anew(request, base.method, times)).plan

    jumping = with_rises("inpaint", nodes, rises, down)
    return replace(jumping, method=f"{plan.method}, jumps=({length}, {repeats})")


def _rows_from(plan: Plan, first: int) -> Plan:
    """Return the plan's rows from number `first` on, which read no earlier x0."""
    names = ("nodes", "rows", "alphas", "sigmas", "times")
    arrays: dict[str, Any] = {name: getattr(plan, name)[first:] for name in names}
    return replace(plan, **arrays)


def _begun_anew(request: PlanRequest, method: str, times: FloatArray) -> PlanRequest:
    """Return the request for a multistep method along times, the last of them the plan's end.

    An order that is higher than the number of rows is lowered to it.
    """
    knobs = {**request.knobs, "last": float(times[-1])}
    order, rows = knobs.get("order"), len(times) - 1
    if order is not None and order > rows:
        knobs["order"] = rows
        knobs.pop("corrected", None)  # which is for order 3 alone
    grid = Grid(np.append(times[times > 0.0], 0.0))
    return PlanRequest(grid, method, clip=request.clip, knobs=knobs)
