"""Reads and writes files of several plans, at most one for each number of network calls."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from fastsample._support.files import Format
from fastsample.plans.plan import Plan

# Every entry of the file's list is the JSON object that `Plan.to_json` writes.
_FORMAT = Format(
    "fastsample.plans",
    3,
    "load_plans",
    "path must be a file of save_plans",
    last_without_checksum=1,
)


def save_plans(path: str | Path, plans: Mapping[int, Plan] | Iterable[Plan]) -> Path:
    """Write plans to one JSON file, shortest first.

    Args:
        path: a file to make or to replace; its folder is made if need be.
        plans: plans, no two of which make equally many network calls; a mapping's keys are ignored.

    Returns:
        The path of the file.

    Raises:
        TypeError: something else than several plans.
        ValueError: two plans with equally many network calls.
    """
    if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        swapped = isinstance(plans, str | os.PathLike)
        remedy = "; the path comes first: save_plans(path, plans)" if swapped else ""
        raise TypeError(f"save_plans: path must be a path, got {type(path).__name__}{remedy}")
    if isinstance(plans, Plan) or not isinstance(plans, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"save_plans: plans must be several Plans, got {type(plans).__name__}")
    if isinstance(plans, Mapping):
        plans = cast("Mapping[int, Plan]", plans).values()
    plans = list(plans)
    for plan in plans:
        if not isinstance(plan, Plan):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"save_plans: plans must be Plans, got {type(plan).__name__}")
    ordered = sorted(plans, key=lambda plan: plan.calls)
    lengths = [plan.calls for plan in ordered]
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"save_plans: plans must differ in their steps, got {lengths}")
    return _FORMAT.save_text(path, {"plans": [json.loads(plan.to_json()) for plan in ordered]})


def load_plans(path: str | Path) -> dict[int, Plan]:
    """Return the plans that `save_plans` wrote, by their numbers of network calls.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, cut off or not one of `save_plans`.
    """
    fields = _FORMAT.load_text(path)
    with _FORMAT.reading(path):
        plans = [Plan.from_json(json.dumps(entry)) for entry in fields["plans"]]
    return {plan.calls: plan for plan in plans}
