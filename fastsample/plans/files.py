"""Several plans in one JSON file, by their number of network calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastsample._support.files import write_atomically
from fastsample.plans.plan import Plan

_FORMAT, _VERSION = "fastsample.plans", 1


def save_plans(path: str | Path, plans: Mapping[int, Plan] | Iterable[Plan]) -> Path:
    """Write plans, of which no two have as many steps, shortest first.

    Raises:
        ValueError: two plans of one length.
    """
    ordered = sorted(plans.values() if isinstance(plans, Mapping) else plans, key=len)
    lengths = [len(plan) for plan in ordered]
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"save_plans: plans must differ in their steps, got {lengths}")
    entries = [json.loads(plan.to_json()) for plan in ordered]
    text = json.dumps({"format": _FORMAT, "version": _VERSION, "plans": entries}, allow_nan=False)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(target, text.encode() + b"\n")


def load_plans(path: str | Path) -> dict[int, Plan]:
    """What `save_plans` wrote, by number of steps; bit for bit the same plans.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is cut off, or no such file of plans.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_plans: path must name a file, got {path}")
    try:
        data = json.loads(Path(path).read_text())
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        plans = [Plan.from_json(json.dumps(entry)) for entry in data["plans"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"load_plans: path must be a file of save_plans, got {path} ({error})"
        ) from None
    return {len(plan): plan for plan in plans}
