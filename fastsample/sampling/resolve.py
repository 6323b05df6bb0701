"""From the arguments of `sample` and its kin to what is run: a plan, and how it is guided."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import check_integer
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.fit import check_plan, check_variance
from fastsample.grids import makers
from fastsample.grids.grid import Grid
from fastsample.grids.registry import DEFAULT_GRID, GRIDS, check_grid_name, noisiest
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.samplers.registry import DEFAULT_METHOD, METHODS, check_method
from fastsample.sampling.guidance import Correction, interval_scales

Steps: TypeAlias = int | Grid | Plan | Sequence[float]


@dataclass(frozen=True)
class Wanted:
    """What a caller asks for: the arguments of `sample` that decide about the plan.

    Attributes:
        steps: K, times, or a plan.
        method: a name of `samplers.registry`, or "auto".
        grid: a name of `grids.registry`, "auto" or "random".
        clip: range of x0, or "auto".
        knobs: of the method.
        seed: of the times of ``grid="random"``.
        guidance: classifier-free guidance scale, one or one per row; None is off.
        guidance_interval: times (low, high) between which rows are guided.
        guidance_rescale: share of guidance rescaling.
        threshold: quantile of dynamic thresholding.
        uncond: conditions that mean "no condition"; None is the model's own.
    """

    steps: Steps
    method: str = "auto"
    grid: str = "auto"
    clip: Clip | Literal["auto"] = "auto"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    seed: Any = None
    guidance: float | Sequence[float] | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    threshold: float | None = None
    uncond: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Resolved:
    """What is run for it.

    Attributes:
        plan: the rows.
        method: the method's name; "tuned" for the model's own plan, "given" for the caller's.
        grid: the grid's name; "given" for given times and plans, "method" where the method chooses.
        uncond: conditions that mean "no condition"; None without guidance.
        correct: what changes outputs before the kernel, or None.
    """

    plan: Plan
    method: str
    grid: str
    uncond: Mapping[str, Any] | None = None
    correct: Correction | None = None


def resolve(function: str, denoiser: Denoiser, wanted: Wanted) -> Resolved:
    """The plan of a run, checked against the model.

    "auto" as the method is, in this order: the plan that was tuned for this model and number of
    steps, unless times, knobs, a clip, guidance or a threshold are asked for; the one method that
    takes the given knobs; `DEFAULT_METHOD`. "auto" as the grid is the best for the profile that the
    model carries, `DEFAULT_GRID` without one.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        wanted: what is asked for.

    Raises:
        TypeError: an argument of the wrong kind, or a knob that no method takes.
        ValueError: unknown names, knobs of another method, or a plan that does not fit the model.
    """
    unguided = _unguided(function, denoiser, wanted)
    plan, uncond = _guided(function, denoiser, unguided.plan, wanted)
    correct = None
    if wanted.guidance_rescale != 0.0 and not plan.is_guided:
        raise ValueError(
            f"{function}: guidance must be given with guidance_rescale, got no guided row"
        )
    if wanted.threshold is not None or wanted.guidance_rescale != 0.0:
        correct = Correction(plan, wanted.guidance_rescale, wanted.threshold)
        plan = correct.plan
    return replace(unguided, plan=plan, uncond=uncond, correct=correct)


def _unguided(function: str, denoiser: Denoiser, wanted: Wanted) -> Resolved:
    if isinstance(wanted.steps, Plan):
        return _given_plan(function, denoiser, wanted)
    name = wanted.method
    if isinstance(name, str) and name == "auto":
        plan = _own_plan(denoiser, wanted)
        if plan is not None:
            return Resolved(check_plan(function, "steps", denoiser, plan), "tuned", "given")
        name = _method_for(function, wanted.knobs)
    method = check_method(function, name, wanted.knobs)
    options = dict(wanted.knobs)
    if "variance" in method.knobs:
        options.setdefault("variance", denoiser.variance)
        check_variance(function, denoiser, options["variance"])
    options["clip"] = denoiser.clip_for(wanted.clip)
    options["prediction"] = denoiser.prediction
    if not method.chooses_times:
        grid, label = make_grid(function, denoiser, wanted.steps, wanted.grid, wanted.seed)
        return Resolved(method.make(denoiser.schedule, grid, **options), name, label)
    even = wanted.grid in ("auto", DEFAULT_GRID)
    if not even or _are_times(wanted.steps):
        argument, rule, value = (
            ("steps", "be a number", wanted.steps) if even else ("grid", "be left out", wanted.grid)
        )
        raise ValueError(
            f'{function}: {argument} must {rule} with method="{name}", which chooses its times, '
            f"got {value!r}"
        )
    return Resolved(method.make(denoiser.schedule, wanted.steps, **options), name, "method")


def _given_plan(function: str, denoiser: Denoiser, wanted: Wanted) -> Resolved:
    """A plan decides what `method`, its knobs, `grid` and `clip` would."""
    given: dict[str, tuple[Any, ...]] = {
        "method": (wanted.method, "auto", DEFAULT_METHOD),
        "grid": (wanted.grid, "auto", DEFAULT_GRID),
        "clip": (wanted.clip, "auto"),
    }
    given |= {name: (value,) for name, value in wanted.knobs.items()}
    for name, (value, *defaults) in given.items():
        if not any(isinstance(value, str) and value == default for default in defaults):
            raise ValueError(
                f"{function}: {name} must be left out with a Plan, which decides it, got {value!r}"
            )
    assert isinstance(wanted.steps, Plan)
    return Resolved(check_plan(function, "steps", denoiser, wanted.steps), "given", "given")


def _own_plan(denoiser: Denoiser, wanted: Wanted) -> Plan | None:
    """The model's own plan of so many steps, unless something else was asked for."""
    asked = any(not (isinstance(v, str) and v == "auto") for v in (wanted.grid, wanted.clip))
    if asked or wanted.knobs or wanted.guidance is not None or wanted.threshold is not None:
        return None
    if _are_times(wanted.steps) or isinstance(wanted.steps, (bool, float, str)):
        return None
    try:
        return denoiser.plans.get(operator.index(wanted.steps))  # type: ignore[arg-type]
    except TypeError:  # `make_grid` says what is wrong with it
        return None


def _method_for(function: str, knobs: Mapping[str, Any]) -> str:
    """The method that the knobs belong to; the default one if it takes them."""
    having = [name for name, method in METHODS.items() if knobs.keys() <= method.knobs.keys()]
    if DEFAULT_METHOD in having or not having:
        return DEFAULT_METHOD  # `check_method` says what is wrong with knobs that nobody takes
    if len(having) > 1:
        raise ValueError(
            f"{function}: method must be given with {sorted(knobs)}, which several methods take, "
            f'got "auto"; it may be one of {having}'
        )
    return having[0]


def make_grid(
    function: str,
    denoiser: Denoiser,
    steps: Any,
    grid: str,
    seed: Any = None,
    **objective: Any,
) -> tuple[Grid, str]:
    """The times and the grid's name: given as they are, or K of them spread as `grid` says.

    `objective` is what "auto" asks of the model's profile, see `Profile.best_grid`.
    """
    schedule = denoiser.schedule
    check_grid_name(function, grid)
    if _are_times(steps):
        if grid not in ("auto", DEFAULT_GRID):
            raise ValueError(f"{function}: grid must be left out with given times, got {grid!r}")
        if isinstance(steps, Grid):
            return steps, "given"
        return Grid(steps.tolist() if isinstance(steps, Tensor) else steps), "given"
    count = check_integer(function, "steps", steps, 1, schedule.num_steps)
    if grid == "auto":
        profile = denoiser.profile
        best = None if profile is None else profile.best_grid(count, **objective)
        return (best, "auto") if best else (GRIDS[DEFAULT_GRID](schedule, count), DEFAULT_GRID)
    if grid != "random":
        return GRIDS[grid](schedule, count), grid
    if np.ndim(seed) != 0 or seed is None:
        raise ValueError(
            f'{function}: grid must not be "random" without one seed for the whole batch; '
            "pass steps=grids.random(T, K, seed)"
        )
    return makers.random(noisiest(schedule), count, seed), grid


def _are_times(steps: Any) -> bool:
    """Whether `steps` is the times themselves, not their number."""
    if isinstance(steps, Tensor):
        return steps.dim() > 0
    return isinstance(steps, (Grid, Sequence, np.ndarray)) and not isinstance(steps, str)


def _guided(
    function: str, denoiser: Denoiser, plan: Plan, wanted: Wanted
) -> tuple[Plan, Mapping[str, Any] | None]:
    """The plan with its scales, and the conditions that mean "no condition" (None: no guidance)."""
    scale, interval = wanted.guidance, wanted.guidance_interval
    if scale is None and not plan.is_guided:
        for name, value in (("uncond", wanted.uncond), ("guidance_interval", interval)):
            if value is not None:
                raise ValueError(f"{function}: guidance must be given with {name}, got None")
        return plan, None
    if scale is None and interval is not None:
        raise ValueError(
            f"{function}: guidance_interval must be left out with a guided Plan, got {interval!r}"
        )
    if scale is not None:
        plan = plan.with_guidance(interval_scales(plan, scale, interval))
    uncond = denoiser.uncond if wanted.uncond is None else wanted.uncond
    if uncond is None:
        raise ValueError(
            f"{function}: uncond must be given with guidance, got None; it holds the keyword "
            "arguments that mean no condition"
        )
    return plan, uncond


def make_dtype(dtype: torch.dtype | None, start: Any, denoiser: Denoiser) -> torch.dtype:
    """The samples' dtype: as asked for, else that of `start`, else the model's."""
    chosen = dtype or (start.dtype if isinstance(start, Tensor) else denoiser.dtype)
    if chosen not in DTYPE_CODES:
        raise TypeError(
            f"sample: dtype must be one of {[str(known) for known in DTYPE_CODES]}, got {chosen}"
        )
    return chosen
