"""Checks that a plan's arrays fit each other: shapes, order of times, levels, history, last row."""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.laws import TOLERANCE, broken_law
from fastsample.plans.rows import (
    COLUMNS,
    Check,
    Prediction,
    calls_network,
    history_length,
    history_sources,
)
from fastsample.schedules.schedule import NoiseSchedule

_LEVEL_TOLERANCE = 1e-12  # absolute: levels lie between 0 and about 1


def check_shapes(
    nodes: FloatArray, rows: FloatArray, alphas: FloatArray, sigmas: FloatArray, times: FloatArray
) -> None:
    """Raise ValueError for a wrong shape, or a negative node, alpha or sigma."""
    if nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"Plan: nodes must have shape (K' + 1,), got {nodes.shape}")
    steps = len(nodes) - 1
    for name, array, shape in (
        ("rows", rows, (steps, len(COLUMNS))),
        ("alphas", alphas, (steps + 1,)),
        ("sigmas", sigmas, (steps + 1,)),
        ("times", times, (steps,)),
    ):
        if array.shape != shape:
            raise ValueError(
                f"Plan: {name} must have shape {shape} for {steps + 1} nodes, got {array.shape}"
            )
    for name, values in (("nodes", nodes), ("alphas", alphas), ("sigmas", sigmas)):
        if np.any(values < 0):
            raise ValueError(f"Plan: {name} must not be negative, got {_short(values)}")


def check_order(nodes: FloatArray, rows: FloatArray, times: FloatArray) -> None:
    """Raise ValueError unless the nodes of a plan fall, or all rise.

    A plan from noise to data may rise in rows that make no network call. Such rows do not look
    back over a rise for an earlier x0, and times in rows with a call are positive.
    """
    calls, moves = calls_network(rows), np.diff(nodes)
    if np.any(times[calls] <= 0):
        i = int(np.argmax(calls & (times <= 0)))
        raise ValueError(
            f"Plan: times must be above 0 where the network is called, got {times[i]:g} in row {i}"
        )
    if np.all(moves > 0):
        if not np.all(calls):
            raise ValueError(
                "Plan: rows must all call the network where all nodes rise (inversion), "
                f"got none in row {int(np.argmin(calls))}"
            )
    else:
        wrong = (moves == 0) | ((moves > 0) & calls)
        if nodes[-1] > nodes[0] and not np.any(wrong):
            raise ValueError(
                "Plan: nodes must end at or below the first one, unless all rise (inversion), "
                f"got {_short(nodes)}"
            )
        if np.any(wrong):
            i = int(np.argmax(wrong))
            raise ValueError(
                "Plan: nodes must fall from row to row, and may rise only in rows without a "
                f"network call (q = e = 0), got {nodes[i]:g} then {nodes[i + 1]:g} in row {i} of "
                f"{_short(nodes)}"
            )
    for i, sources in enumerate(history_sources(nodes, calls)):
        needed = history_length(rows[i])
        if needed > len(sources):
            raise ValueError(
                "Plan: rows must not use an x0 from before the start or before a rise of the "
                f"nodes, got c{needed} in row {i}, which has {len(sources)} earlier ones"
            )


def check_levels(
    nodes: FloatArray,
    alphas: FloatArray,
    sigmas: FloatArray,
    times: FloatArray,
    schedule: NoiseSchedule | None,
) -> None:
    """Raise ValueError for a time above T, or levels that are not the schedule's at the nodes."""
    if schedule is None:
        return
    for name, values in (("nodes", nodes), ("times", times)):
        if np.max(values) > schedule.T:
            raise ValueError(
                f"Plan: {name} must be at or below T = {schedule.T:g}, got {np.max(values):g}"
            )
    for name, given, levels in zip(
        ("alphas", "sigmas"), (alphas, sigmas), schedule.levels(nodes), strict=True
    ):
        error = np.abs(given - levels)
        if np.any(error > _LEVEL_TOLERANCE):
            i = int(np.argmax(error))
            raise ValueError(
                f"Plan: {name} must be the schedule's levels at the nodes, got {given[i]:.12g} at "
                f"t = {nodes[i]:g}, where the schedule has {levels[i]:.12g}; pass schedule=None "
                "for levels of another origin"
            )


def check_landing(
    nodes: FloatArray, rows: FloatArray, alphas: FloatArray, sigmas: FloatArray, check: Check
) -> None:
    """Raise ValueError unless a plan that ends at data returns x0, without noise, in its last row.

    A plan that ends part way, above node 0, has no such law.
    """
    if nodes[-1] != 0.0:
        return
    last = dict(zip(COLUMNS, rows[-1].tolist(), strict=True))
    if last["d"] != 0.0:
        raise ValueError(f"Plan: rows[-1] must draw no noise (d = 0), got d = {last['d']:g}")
    if check == "none":
        return
    if alphas[-1] != 1.0 or sigmas[-1] != 0.0:
        raise ValueError(
            "Plan: alphas and sigmas must end at 1 and 0 (clean data), got "
            f"{alphas[-1]:g} and {sigmas[-1]:g}; end at the node of these levels, or pass "
            'check="none"'
        )
    if max(abs(last["a"]), abs(last["e"])) > TOLERANCE:
        raise ValueError(
            f"Plan: rows[-1] must land on x0 (a = e = 0), got a = {last['a']:g}, "
            f'e = {last["e"]:g}; pass check="none" if this sampler is meant to'
        )


def check_laws(
    rows: FloatArray, prediction: Prediction, alphas: FloatArray, sigmas: FloatArray, check: Check
) -> None:
    """Raise ValueError if a row breaks an equation that ties it to the noise levels."""
    broken = broken_law(rows, prediction, alphas, sigmas, check)
    if broken is None:
        return
    i, law, error = broken
    weaker = "mean" if law == "variance" else "none"
    raise ValueError(
        f"Plan: rows[{i}] breaks the {law} law by {error:.2g}; "
        f'pass check="{weaker}" if this sampler is meant to'
    )


def _short(values: FloatArray) -> str:
    """Return the first and last values as text, for error messages."""
    return np.array2string(values, precision=6, threshold=8, edgeitems=3)
