"""Converts plans to text: a table for people, and JSON for programs."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample._support.files import Format
from fastsample.plans.rows import COLUMNS, HISTORY, NEUTRAL, calls_network, row_table

PLAN = Format(
    "fastsample.plan",
    3,
    "Plan.from_json",
    "text must be a plan written by to_json",
    last_without_checksum=1,
)
ARRAYS = ("nodes", "alphas", "sigmas", "rows", "times")
_NEW_COLUMNS = ("c3", "c4")  # which versions before 3 did not have
_MEASURES = {"endpoint": "root mean square", "robust": "pseudo-Huber"}
_KEYS = ("method", "prediction", "check", "schedule", "columns", *ARRAYS[:-1])


def table(nodes: FloatArray, rows: FloatArray, times: FloatArray) -> str:
    """Return a step's formula and, below it, an aligned table of the columns in use.

    A plan of more than 12 rows is shortened in the middle. The column "network" is shown if the
    network takes other times than the nodes.
    """
    moved = bool(np.any((times != nodes[:-1]) & calls_network(rows)))
    shown = [
        name
        for i, name in enumerate(COLUMNS)
        if name in ("p", "q", "a", "b") or np.any(rows[:, i] != NEUTRAL[name])
    ]
    lines = [["row", "time", *(["network"] if moved else []), *shown]]
    steps = range(len(rows))
    for i in steps if len(rows) <= 12 else [*steps[:5], None, *steps[-5:]]:
        if i is None:
            lines.append(["...", *[""] * (len(lines[0]) - 1)])
            continue
        move = f"{nodes[i]:.6g} -> {nodes[i + 1]:.6g}"
        network = [f"{times[i]:.6g}"] if moved else []
        values = (f"{rows[i, COLUMNS.index(name)]:.5g}" for name in shown)
        lines.append([str(i), move, *network, *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        [_formula(shown), *("  ".join(map(str.rjust, line, widths)).rstrip() for line in lines)]
    )


def origin(provenance: Mapping[str, Any]) -> str | None:
    """Return a table of what `tune` measured; None if `tune` did not make the plan."""
    try:
        calibration, validation = provenance["samples"]
        measure, fine = _MEASURES[provenance["objective"]], provenance["teacher_steps"]
        lines = [
            f"tuned on {calibration} starting noises, judged on {validation} others: {measure} "
            f"difference from {fine} steps; {provenance['runs']} candidate times, "
            f"{provenance['network_calls']:.0f} network calls of all samples",
            f"{'':44}{'calibration':>11}{'validation':>12}",
        ]
        for stage in (*provenance["starts"], *provenance["stages"]):
            score = "" if stage["calibration"] is None else f"{stage['calibration']:.4f}"
            mark = "  <- this plan" if stage["name"] == provenance["chosen"] else ""
            lines.append(f"{stage['name']:44}{score:>11}{stage['validation']:>12.4f}{mark}")
    except (KeyError, TypeError, ValueError):
        return None
    return "\n".join(lines)


def encode(fields: dict[str, Any]) -> str:
    """Return a plan's fields as strict JSON; floats are kept bit for bit."""
    data: dict[str, Any] = {"columns": COLUMNS}
    for name, value in fields.items():
        data[name] = value.tolist() if isinstance(value, np.ndarray) else value
    # Strict JSON has no infinity, so infinite values of lo and hi are stored as strings.
    data["rows"] = [[x if math.isfinite(x) else str(x) for x in row] for row in data["rows"]]
    return PLAN.to_text(data)


def decode(text: str) -> dict[str, Any]:
    """Return the fields that `encode` wrote, with float64 arrays; `Plan` checks their values."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"Plan.from_json: text must be a string, got {type(text).__name__}")
    fields = PLAN.from_text(text, shown(text))
    with PLAN.reading(shown(text)):
        missing = [name for name in _KEYS if name not in fields]
        if missing:
            raise ValueError(f"{missing} missing")
        old = fields["version"] < 3
        columns = [name for name in COLUMNS if not (old and name in _NEW_COLUMNS)]
        if list(fields["columns"]) != columns:
            raise ValueError(f"columns must be {columns}, got {fields['columns']}")
        decoded = {name: fields[name] for name in ("method", "prediction", "check", "schedule")}
        decoded["provenance"] = fields.get("provenance")
        for name in ("nodes", "alphas", "sigmas"):
            decoded[name] = np.array(fields[name], float)
        values: FloatArray = np.array([[float(x) for x in row] for row in fields["rows"]])
        if values.ndim != 2 or values.shape[1] != len(columns):
            raise ValueError(f"rows must hold {len(columns)} numbers each")
        named = {name: values[:, i] for i, name in enumerate(columns)}
        decoded["rows"] = row_table(len(values), **named)
        if not old:
            decoded["times"] = np.array(fields["times"], float)
        return decoded


def shown(text: str) -> str:
    """Return the beginning and the end of a text, for error messages."""
    return reprlib.repr(text)


def _formula(columns: list[str]) -> str:
    """Return a step's formula as text, with only those coefficients that the plan uses."""
    terms = {"a": "a x", "b": "b x0", "e": "e m", "d": "d z"}
    terms.update({name: f"{name} h{n}" for n, name in enumerate(HISTORY, 1)})
    if "lv_hi" in columns:
        terms["d"] = "d exp((lv_lo + (v + 1)/2 (lv_hi - lv_lo))/2) z"
    x0 = "p x + q m"
    parts = ["m = u + w (c - u)"] if "w" in columns else []
    parts.append(f"x0 = clamp({x0}, lo, hi)" if {"lo", "hi"} & {*columns} else f"x0 = {x0}")
    parts.append("x_next = " + " + ".join(terms[name] for name in columns if name in terms))
    return ",  ".join(parts)
