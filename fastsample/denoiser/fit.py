"""Whether a profile or plans fit a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan


class CarriedProfile(Protocol):
    """What a model asks of its profile; `fastsample.Profile` has it."""

    def check_model(self, model: Any) -> None:
        """ValueError unless it was measured of such a model."""

    def best_grid(self, steps: int, **options: Any) -> Grid | None:
        """The best times of so many network calls."""


def checked_plans(model: Any, plans: Mapping[int, Plan] | Iterable[Plan]) -> dict[int, Plan]:
    """Plans by length; ValueError unless the model can sample with each of them by default."""
    if isinstance(plans, Plan) or not isinstance(plans, Iterable):
        raise TypeError(f"with_plans: plans must be several Plans, got {type(plans).__name__}")
    named = plans.items() if isinstance(plans, Mapping) else ((None, plan) for plan in plans)
    found: dict[int, Plan] = {}
    for steps, plan in named:
        if not isinstance(plan, Plan):
            raise TypeError(f"with_plans: plans must be Plans, got {type(plan).__name__}")
        if steps not in (None, len(plan)) or len(plan) in found:
            raise ValueError(
                f"with_plans: plans must be one of each length, got {steps or 'another'} for "
                f"one of {len(plan)} steps"
            )
        for word, wrong in (
            ("deterministic", plan.is_stochastic),
            ("end at 0", plan.inverts),
            ("unguided", plan.is_guided),
        ):
            if wrong:
                raise ValueError(
                    f"with_plans: plans must be {word}, got {plan.method} of {len(plan)} steps"
                    if word != "end at 0"
                    else f"with_plans: plans must end at 0, got {plan.method} that inverts"
                )
        note = plan.provenance or {}
        if "shape" in note and tuple(note["shape"]) != model.shape:
            raise ValueError(
                f"with_plans: plans must be for samples of shape {model.shape}, "
                f"got {tuple(note['shape'])}"
            )
        for name in ("schedule", "prediction"):
            mine, theirs = getattr(model, name), getattr(plan, name)
            if mine != theirs:
                raise ValueError(
                    f"with_plans: plans must be for the model's {name} {mine!r}, got {theirs!r}"
                )
        found[len(plan)] = plan
    return found
