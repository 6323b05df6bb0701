"""Functions that check whether a plan, a profile or a variance fits a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan


class CarriedProfile(Protocol):
    """The methods of `fastsample.Profile` that a `Denoiser` calls.

    It is a protocol, because the module of `Profile` imports this package.
    """

    def check_model(self, model: Any) -> None:
        """Raise ValueError unless schedule, shape, prediction and variance are the model's."""

    def best_grid(self, steps: int, **options: Any) -> Grid | None:
        """Return the best grid of `steps` network calls, or None."""

    def sampling_grid(self, steps: int, order: int) -> Grid | None:
        """Return the grid that is best for a sampler of an order, or None."""


def check_profile(model: Any, profile: Any) -> CarriedProfile:
    """Return the profile; raise unless its schedule, shape, prediction, variance fit the model."""
    if not hasattr(profile, "check_model"):
        raise TypeError(f"with_profile: profile must be a Profile, got {type(profile).__name__}")
    profile.check_model(model)
    return profile


def check_plan(function: str, name: str, model: Any, plan: Plan) -> Plan:
    """Return the plan; raise ValueError unless samples of this model can be drawn with it.

    The schedule of a plan without one is not checked. A plan whose provenance says that it was
    tuned for samples of another shape is refused.

    Args:
        function: the caller's name, for messages.
        name: the argument that holds the plan.
        model: a `Denoiser`.
        plan: the plan.
    """

    def refuse(what: str, expected: Any, other: Any, remedy: str = "") -> None:
        raise ValueError(
            f"{function}: {name} must fit the model's {what} {expected!r}, "
            f"got a plan for {other!r}{remedy}"
        )

    if plan.inverts:
        raise ValueError(f"{function}: {name} must end at 0, got {plan.method}, which inverts")
    if plan.prediction != model.prediction:
        refuse("prediction", model.prediction, plan.prediction)
    if plan.schedule is not None and plan.schedule != model.schedule:
        published = (plan.provenance or {}).get("published")
        remedy = ""
        if published is not None:
            remedy = f"; plans.load({published!r}, schedule=denoiser.schedule) is one for the model"
        refuse("schedule", model.schedule, plan.schedule, remedy)
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
    """Raise ValueError for a learned variance with a model whose output has none."""
    learned = isinstance(variance, str) and variance == "learned_range"
    if learned and model.variance != "learned_range":
        raise ValueError(
            f'{function}: variance must not be "learned_range" for a model without one; make '
            'the Denoiser with variance="learned_range" if its output has 2C channels'
        )


def plans_by_length(model: Any, plans: Mapping[int, Plan] | Iterable[Plan]) -> dict[int, Plan]:
    """Check the plans and return a dictionary from number of network calls to plan.

    Args:
        model: a `Denoiser`.
        plans: plans, or a mapping from their numbers of network calls to the plans.

    Raises:
        TypeError: other things than plans.
        ValueError: a plan that does not fit the model, draws noise, is guided or ends part way, or
            two plans of equally many network calls.
    """
    by_length: dict[int, Plan] = {}
    for steps, plan in _with_lengths(plans):
        if not isinstance(plan, Plan):
            raise TypeError(f"with_plans: plans must be Plans, got {type(plan).__name__}")
        if steps not in (None, plan.calls) or plan.calls in by_length:
            raise ValueError(
                f"with_plans: plans must be one of each number of network calls, got "
                f"{steps or 'another'} for one of {plan.calls}"
            )
        for rule, broken in (
            ("deterministic", plan.is_stochastic),
            ("unguided", plan.is_guided),
            ("complete (end at data)", plan.nodes[-1] != 0.0),
        ):
            if broken:
                raise ValueError(
                    f"with_plans: plans must be {rule}, got {plan.method} of {plan.calls} calls"
                )
        by_length[plan.calls] = check_plan("with_plans", "plans", model, plan)
    return by_length


def _with_lengths(plans: Any) -> Iterable[tuple[Any, Any]]:
    """Return pairs (key or None, plan) of the plans in a mapping or an iterable."""
    if isinstance(plans, Plan) or not isinstance(plans, Iterable):
        raise TypeError(f"with_plans: plans must be several Plans, got {type(plans).__name__}")
    if isinstance(plans, Mapping):
        return cast(Mapping[Any, Any], plans).items()
    return ((None, plan) for plan in cast(Iterable[Any], plans))
