"""What a model carries with it, a profile and tuned plans: checked to be its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastsample.plan import Plan
from fastsample.profiles import Profile


def checked_profile(model: Any, profile: Profile) -> Profile:
    """The profile; ValueError unless it is of this model's schedule, shape and outputs."""
    if not isinstance(profile, Profile):
        raise TypeError(f"with_profile: profile must be a Profile, got {type(profile).__name__}")
    for name, mine, theirs in (
        ("schedule", model.schedule, profile.schedule),
        ("shape", model.shape, profile.shape),
        ("prediction", model.prediction, profile.settings.prediction),
        ("variance", model.variance, profile.settings.variance),
    ):
        if mine != theirs:
            raise ValueError(
                f"with_profile: profile must have the model's {name} {mine!r}, got {theirs!r}"
            )
    return profile


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
