"""What the user of `FastSampleScheduler` chose: checked, and written to and read from a config."""

# diffusers' configs are untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsample._support.checks import check_integer
from fastsample.grids.registry import check_grid_name
from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.lists import Settings, course_of
from fastsample.integrations.diffusers.request import Request
from fastsample.integrations.diffusers.translation import translate
from fastsample.plans.files import load_plans
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import check_method, method_for

_NAME = "FastSampleScheduler"
_LEVELS_AGREE = 1e-6  # A plan of a schedule rounded to float32 still serves.


@dataclass(frozen=True)
class Choices:
    """The choices, apart from the arguments of the source scheduler.

    Attributes:
        source: class name of the scheduler that is replaced.
        settings: method, grid, knobs, plans and compatibility.
        seed: seed of the noise, one or one per sample; None for the pipeline's generator.
    """

    source: str
    settings: Settings
    seed: int | list[int] | None

    @classmethod
    def checked(
        cls,
        source: str,
        method: str,
        grid: str,
        seed: Any,
        plan: Any,
        compat: Any,
        knobs: Mapping[str, Any],
    ) -> Choices:
        """Return the choices after the checks that need no scheduler.

        Raises:
            TypeError: an argument of the wrong type, or a knob that no method takes.
            ValueError: an unknown name, or choices that contradict each other.
        """
        plans = _plans(plan)
        if compat not in (None, "diffusers"):
            raise ValueError(f'{_NAME}: compat must be None or "diffusers", got {compat!r}')
        if grid not in ("auto", "source"):
            check_grid_name(_NAME, grid)
        if grid == "random":
            raise ValueError(
                f'{_NAME}: grid must not be "random", whose times differ from run to run; pass '
                "plan=fs.shortcut(schedule, fs.grids.random(...))"
            )
        # JSON holds numbers of Python, and lists instead of tuples.
        knobs = {k: v.item() if isinstance(v, np.generic) else v for k, v in knobs.items()}
        if "plans" in knobs:
            raise TypeError(f"{_NAME}: plans must be passed as plan=, got plans=")
        if method == "fastsample":
            method = method_for(_NAME, knobs)
        if method != "auto":
            check_method(_NAME, method, knobs)
        for name, value, unset in (
            ("method", method, "auto"),
            ("grid", grid, "auto"),
            ("compat", compat, None),
            ("knobs", dict(knobs), {}),
        ):
            if plans and value != unset:
                raise ValueError(
                    f"{_NAME}: {name} must be left out with a plan, which decides it, got {value!r}"
                )
        if compat is not None and (method != "auto" or grid not in ("auto", "source")):
            raise ValueError(
                f'{_NAME}: method and grid must be "auto" with compat={compat!r}, got {method!r} '
                f"and {grid!r}"
            )
        if isinstance(seed, Sequence) and not isinstance(seed, str):
            seed = [check_integer(_NAME, "seed", value, 0, 2**64 - 1) for value in seed]
        elif seed is not None:
            seed = check_integer(_NAME, "seed", seed, 0, 2**64 - 1)
        return cls(source, Settings(method, grid, dict(knobs), plans, compat), seed)

    def check(self, function: str, source: Any, conventions: Conventions) -> None:
        """Raise unless the choices go with the scheduler that is replaced.

        Raises:
            TypeError: a knob that no method takes.
            ValueError: a scheduler without a counterpart, or a plan for another network.
        """
        settings = self.settings
        for plan in settings.plans.values():
            _check_plan(function, plan, conventions)
        if settings.method == "auto" and not settings.plans:
            translation = translate(function, source)
            check_method(function, translation.method, settings.knobs)
            if settings.compat is not None and not (
                translation.by_index and translation.method == "ddim"
            ):
                raise ValueError(
                    f'{function}: compat="diffusers" must go with a DDIMScheduler, got '
                    f"{type(source).__name__}"
                )
        # What `set_timesteps` would refuse for any number of steps is refused now.
        steps = min(settings.plans) if settings.plans else min(4, len(source))
        shift = 1.0 if source.config.get("use_dynamic_shifting") else None
        course_of(function, source, conventions, settings, Request(steps, mu=shift))

    def as_config(self) -> dict[str, Any]:
        """Return the choices as values that fit in JSON; `checked` takes them."""
        settings = self.settings
        plans = [json.loads(plan.to_json()) for plan in settings.plans.values()]
        knobs = dict(settings.knobs)
        try:
            json.dumps(knobs)
        except TypeError:
            raise TypeError(
                f"{_NAME}: knobs must fit in JSON, since pipelines save them, got {knobs!r:.80}; "
                "pass plan= with a plan made from them"
            ) from None
        return {
            "source": self.source,
            "method": settings.method,
            "grid": settings.grid,
            "seed": self.seed,
            "plan": plans or None,
            "compat": settings.compat,
            "knobs": knobs,
        }


def _plans(given: Any) -> dict[int, Plan]:
    """Return plans by their numbers of network calls: of a plan, a file, several plans or a config.

    Raises:
        TypeError: something else.
        ValueError: two plans of one length, or a file that holds no plans.
    """
    if given is None:
        return {}
    if isinstance(given, str | Path):
        return _plans_of_file(Path(given))
    if isinstance(given, Plan):
        given = [given]
    if isinstance(given, Mapping):
        given = list(given.values())
    if not isinstance(given, Iterable):
        raise TypeError(
            f"{_NAME}: plan must be a Plan, a file, or several Plans, got {type(given).__name__}"
        )
    plans: dict[int, Plan] = {}
    for item in given:
        plan = Plan.from_json(json.dumps(item)) if isinstance(item, dict) else item
        if not isinstance(plan, Plan):
            raise TypeError(f"{_NAME}: plan must be a Plan, got {type(plan).__name__}")
        if plan.calls in plans:
            raise ValueError(
                f"{_NAME}: plan must be one for each number of steps, got two for {plan.calls}"
            )
        plans[plan.calls] = plan
    return plans


def _plans_of_file(path: Path) -> dict[int, Plan]:
    """Return the plans of a file of `save_plans` or of `Plan.to_json`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{_NAME}: plan must be a readable file, got {path}: {error.strerror}; of a "
            "published list pass fs.plans.load(name)"
        ) from None
    if '"fastsample.plans"' in text[:200]:
        return load_plans(path)
    return _plans([Plan.from_json(text)])


def _check_plan(function: str, plan: Plan, conventions: Conventions) -> None:
    """Raise ValueError for a plan that was made for another network."""
    if plan.prediction != conventions.prediction:
        raise ValueError(
            f"{function}: plan must be for prediction {conventions.prediction!r}, got one for "
            f"{plan.prediction!r}"
        )
    schedule = conventions.schedule
    if plan.inverts or plan.nodes[0] > schedule.T:
        raise ValueError(
            f"{function}: plan must lead from noise, at t = {schedule.T:g} or below, to data, got "
            f"one from t = {plan.nodes[0]:g} to {plan.nodes[-1]:g}"
        )
    given = np.stack((plan.alphas, plan.sigmas))
    error = np.abs(given - np.stack(schedule.levels(plan.nodes)))
    if np.any(error > _LEVELS_AGREE):
        k = int(np.argmax(error.max(0)))
        raise ValueError(
            f"{function}: plan must be for the scheduler's noise schedule, {schedule!r:.60}, got "
            f"one with other levels, alpha = {plan.alphas[k]:.6g} at t = {plan.nodes[k]:g} instead "
            f"of {float(schedule.alpha(plan.nodes[k])):.6g}"
        )
