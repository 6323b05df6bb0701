"""Checks that a plan's arrays fit each other: shapes, order of times, last row, coefficients."""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.rows import COLUMNS, TOLERANCE, Check, Prediction, broken_law


def check_shapes(
    nodes: FloatArray, rows: FloatArray, alphas: FloatArray, sigmas: FloatArray
) -> None:
    """Raise ValueError for a wrong shape, unordered times (nodes) or a negative alpha or sigma."""
    if nodes.ndim != 1 or len(nodes) < 2:
        raise ValueError(f"Plan: nodes must have shape (K + 1,), got {nodes.shape}")
    steps = len(nodes) - 1
    for name, array, shape in (
        ("rows", rows, (steps, len(COLUMNS))),
        ("alphas", alphas, (steps + 1,)),
        ("sigmas", sigmas, (steps + 1,)),
    ):
        if array.shape != shape:
            raise ValueError(
                f"Plan: {name} must have shape {shape} for {steps + 1} nodes, got {array.shape}"
            )
    moves = np.diff(nodes)
    if not (np.all(moves < 0) or np.all(moves > 0)) or np.any(nodes < 0):
        raise ValueError(
            "Plan: nodes must be strictly decreasing to 0, or strictly increasing and not "
            f"negative, got {_short(nodes)}"
        )
    if nodes[0] > nodes[-1] and nodes[-1] != 0.0:
        raise ValueError(f"Plan: nodes must decrease to 0, got {nodes[-1]:g} at the end")
    for name, levels in (("alphas", alphas), ("sigmas", sigmas)):
        if np.any(levels < 0):
            raise ValueError(f"Plan: {name} must not be negative, got {_short(levels)}")


def check_landing(rows: FloatArray, alphas: FloatArray, sigmas: FloatArray, check: Check) -> None:
    """Raise ValueError unless the last row of a sampling plan returns x0 and adds no noise."""
    last = dict(zip(COLUMNS, rows[-1].tolist(), strict=True))
    if last["d"] != 0.0:
        raise ValueError(f"Plan: rows[-1] must draw no noise (d = 0), got d = {last['d']:g}")
    if check == "none":
        return
    if alphas[-1] != 1.0 or sigmas[-1] != 0.0:
        raise ValueError(
            "Plan: alphas and sigmas must end at 1 and 0 (clean data), got "
            f'{alphas[-1]:g} and {sigmas[-1]:g}; pass check="none" to land elsewhere'
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
