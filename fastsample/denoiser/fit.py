"""Whether a plan, a profile or a variance fits a model: decided here for everybody who asks."""

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


def check_profile(model: Any, profile: Any) -> CarriedProfile:
    """The profile; TypeError or ValueError unless it was measured of such a model."""
    if not hasattr(profile, "check_model"):
        raise TypeError(f"with_profile: profile must be a Profile, got {type(profile).__name__}")
    profile.check_model(model)
    return profile


def check_plan(function: str, name: str, model: Any, plan: Plan) -> Plan:
    """The plan; ValueError unless samples of this model can be drawn with it.

    A plan without a schedule is taken at its word. A plan that was tuned for samples of another
    shape is refused until its provenance is taken off.

    Args:
        function: the caller's name, for messages.
        name: the argument that holds the plan.
        model: a `Denoiser`.
        plan: the plan.
    """

    def refuse(what: str, own: Any, other: Any, remedy: str = "") -> None:
        raise ValueError(
            f"{function}: {name} must fit the model's {what} {own!r}, got a plan for {other!r}"
            f"{remedy}"
        )

    if plan.inverts:
        raise ValueError(f"{function}: {name} must end at 0, got {plan.method}, which inverts")
    if plan.prediction != model.prediction:
        refuse("prediction", model.prediction, plan.prediction)
    if plan.schedule is not None and plan.schedule != model.schedule:
        refuse("schedule", model.schedule, plan.schedule)
    if plan.nodes[0] > model.schedule.T:
        refuse("times up to T =", model.schedule.T, float(plan.nodes[0]))
    if plan.learns_variance:
        check_variance(function, model, "learned_range")
    shape = (plan.provenance or {}).get("shape")
    if shape is not None and tuple(shape) != model.shape:
        remedy = "; plan.with_provenance(None) may be tried all the same"
        refuse("shape", model.shape, tuple(shape), remedy)
    return plan


def check_variance(function: str, model: Any, variance: Any) -> None:
    """ValueError for a learned variance of a model that has none."""
    learned = isinstance(variance, str) and variance == "learned_range"
    if learned and model.variance != "learned_range":
        raise ValueError(
            f'{function}: variance must not be "learned_range" for a model without one; make '
            'the Denoiser with variance="learned_range" if its output has 2C channels'
        )


def plans_by_length(model: Any, plans: Mapping[int, Plan] | Iterable[Plan]) -> dict[int, Plan]:
    """Plans by their numbers of network calls; ValueError unless the model can use them by default.

    Besides fitting the model they must draw no noise and be unguided, one of each length.
    """
    if isinstance(plans, Plan) or not isinstance(plans, Iterable):
        raise TypeError(f"with_plans: plans must be several Plans, got {type(plans).__name__}")
    named = plans.items() if isinstance(plans, Mapping) else ((None, plan) for plan in plans)
    by_length: dict[int, Plan] = {}
    for steps, plan in named:
        if not isinstance(plan, Plan):
            raise TypeError(f"with_plans: plans must be Plans, got {type(plan).__name__}")
        if steps not in (None, len(plan)) or len(plan) in by_length:
            raise ValueError(
                f"with_plans: plans must be one of each length, got {steps or 'another'} for "
                f"one of {len(plan)} steps"
            )
        for rule, broken in (("deterministic", plan.is_stochastic), ("unguided", plan.is_guided)):
            if broken:
                raise ValueError(
                    f"with_plans: plans must be {rule}, got {plan.method} of {len(plan)} steps"
                )
        by_length[len(plan)] = check_plan("with_plans", "plans", model, plan)
    return by_length
