"""Reads the results of the quality benchmark: the best entries, and the better side."""

from __future__ import annotations

import math
import statistics
from typing import Any

import scipy.stats

METRICS = {"frechet": "Frechet distance", "sw2": "sliced W2"}
"""Names of the metrics; the first that a model has is its main one."""
VERDICT_AT = 10
FAMILIES = (
    "tuned",
    "DDIM",
    "FastDPM",
    "DPM-Solver++ 2M",
    "DPM-Solver++ 3M",
    "UniPC",
    "DEIS",
    "SDE 2M",
    "DDPM",
    "shortcut",
)


def metrics(model: dict[str, Any]) -> list[str]:
    """The metrics of a model, the main one first."""
    return [metric for metric in METRICS if metric in model["floor"]]


def candidates(model: dict[str, Any], steps: int, *, peer: bool | None = None) -> list[dict]:
    """Entries with a run of at most this number of calls; of entries with equal runs, the first."""
    rows = []
    for row in model["rows"]:
        run = row["runs"].get(str(steps), {})
        if run.get("calls", math.inf) > steps or "same_as" in run or "refused" in run:
            continue
        if peer is None or row["peer"] == peer:
            rows.append({**row, **run})
    return rows


def best(model: dict[str, Any], metric: str, steps: int, *, peer: bool) -> dict[str, Any]:
    """The row of one side with the least mean over the seeds at this number of calls."""
    rows = candidates(model, steps, peer=peer)
    chosen = min(rows, key=lambda row: statistics.fmean(row[metric]))
    return next(
        row
        for row in model["rows"]
        if all(row[key] == chosen[key] for key in ("peer", "method", "grid"))
    )


def verdict(model: dict[str, Any], metric: str) -> dict[str, Any]:
    """The finalists of both sides, and the 95% interval of their difference over the seeds.

    The differences are paired by seed: both sides start from the same noise and are compared with
    the same true samples. Few pairs give a wide interval, by Student's t: 4.3 standard errors for
    three seeds.
    """
    ours, peer = (model["finals"][metric][side] for side in ("fastsample", "diffusers"))
    pairs = [a - b for a, b in zip(ours[metric], peer[metric], strict=True)]
    noise = 0.0
    if len(pairs) > 1:
        quantile = float(scipy.stats.t.ppf(0.975, len(pairs) - 1))
        noise = quantile * statistics.stdev(pairs) / math.sqrt(len(pairs))
    difference = statistics.fmean(pairs)
    words = "as good within the noise"
    if abs(difference) > noise:
        words = "better" if difference < 0.0 else "worse"
    return {"ours": ours, "peer": peer, "difference": difference, "noise": noise, "words": words}


def best_of_family(
    model: dict[str, Any], family: str, metric: str, steps: int, *, peer: bool
) -> dict[str, Any] | None:
    """The best entry of a family at this number of calls, by the first seed, or None."""
    rows = [row for row in candidates(model, steps, peer=peer) if row["family"] == family]
    return min(rows, key=lambda row: row[metric][0], default=None)
