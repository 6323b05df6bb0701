"""Several plans in one JSON file, by their number of network calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastsample._support.files import Format
from fastsample.plans.plan import Plan

# Every entry is a whole plan, as `Plan.to_json` writes it.
_FORMAT = Format(
    "fastsample.plans",
    2,
    "load_plans",
    "path must be a file of save_plans",
    last_without_checksum=1,
)


def save_plans(path: str | Path, plans: Mapping[int, Plan] | Iterable[Plan]) -> Path:
    """Write plans, of which no two have as many steps, shortest first.

    Raises:
        ValueError: two plans of one length.
    """
    ordered = sorted(plans.values() if isinstance(plans, Mapping) else plans, key=len)
    lengths = [len(plan) for plan in ordered]
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"save_plans: plans must differ in their steps, got {lengths}")
    return _FORMAT.save_text(path, {"plans": [json.loads(plan.to_json()) for plan in ordered]})


def load_plans(path: str | Path) -> dict[int, Plan]:
    """What `save_plans` wrote, by number of steps; bit for bit the same plans.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged or cut off, or no such file of plans.
    """
    fields = _FORMAT.load_text(path)
    with _FORMAT.reading(path):
        plans = [Plan.from_json(json.dumps(entry)) for entry in fields["plans"]]
    return {len(plan): plan for plan in plans}
