"""Turns the arguments of `sample` into the plan to run, with guidance and thresholding."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from fastsample._support.checks import check_bool, check_integer, check_vector, on_host, warn_user
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.fit import check_plan, check_variance
from fastsample.denoiser.threshold import Threshold
from fastsample.grids import makers
from fastsample.grids.grid import Grid
from fastsample.grids.registry import GRIDS, auto_name, check_grid_name, maker_for, noisiest
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.samplers.registry import DEFAULT_METHOD, Method, check_method, method_for
from fastsample.sampling.guidance import Correction, interval_scales

Steps: TypeAlias = int | Grid | Plan | Sequence[float]

_DEFAULT_STEPS = 10
_LISTS = ("variances", "noise_levels")  # knobs whose length is the number of steps


@dataclass(frozen=True)
class PlanRequest:
    """Holds the arguments of `sample` that determine the plan.

    Attributes:
        steps: K, times, or a plan; None is the length of a list among the knobs, else 10.
        method: a name of `samplers.registry`, or "auto".
        grid: a name of `grids.registry`, "auto" or "random".
        clip: range that x0 is clamped to, or "auto" for the model's.
        knobs: further keyword arguments of the method.
        grid_seed: seed of the times of ``grid="random"``.
        guidance: classifier-free guidance scale, one or one per row; None is off.
        guidance_interval: times (low, high) between which rows are guided.
        guidance_rescale: weight of guidance rescaling.
        threshold: quantile of dynamic thresholding, (quantile, largest bound), or "auto" for the
            model's.
        default: the method that "auto" means without tuned plans and knobs of another method.
        whole: whether the network takes whole times only.
        models_last: whether a plan without a `last` of the caller's lands where the model's
            samplers do (`Denoiser.last`), not on data.
    """

    steps: Steps | None
    method: str = "auto"
    grid: str = "auto"
    clip: Clip | Literal["auto"] = "auto"
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    grid_seed: int | None = None
    guidance: float | Sequence[float] | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    threshold: Threshold | Literal["auto"] | None = None
    default: str = DEFAULT_METHOD
    whole: bool = False
    models_last: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and all(self.knobs.get(name) is None for name in _LISTS):
            object.__setattr__(self, "steps", _DEFAULT_STEPS)


@dataclass(frozen=True)
class Resolved:
    """Holds the plan of a run, and where it came from.

    Attributes:
        plan: the rows.
        method: the method's name; "tuned" for a plan of `Denoiser.with_plans`, "given" for a plan
            from the caller.
        grid: the grid's name; "given" for times or a plan from the caller, "method" where the
            method chooses the times.
        correct: changes outputs before the kernel; None without rescaling and thresholding.
    """

    plan: Plan
    method: str
    grid: str
    correct: Correction | None = None


def resolve(function: str, denoiser: Denoiser, request: PlanRequest) -> Resolved:
    """Return the plan to run, after checking that it fits the model.

    The method "auto" is the first of these: the plan that was tuned for this model and number of
    steps, unless times, a grid, knobs, a clip, guidance or a threshold are requested; the one
    method that takes the knobs; `PlanRequest.default`. The grid "auto" is the best one for the
    model's profile (`Denoiser.with_profile`), or without a profile the method's own
    (`samplers.registry.Method.grid`; for variance-exploding schedules `grids.registry.auto_name`).

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        request: the arguments of the caller.

    Raises:
        TypeError: an argument of the wrong type, or a knob that no method takes.
        ValueError: unknown names, knobs of another method, or a plan that does not fit the model.
    """
    if request.grid_seed is not None and request.grid != "random":
        raise ValueError(
            f'{function}: grid_seed must be left out without grid="random", got '
            f"{request.grid_seed!r}"
        )
    if check_bool(function, "whole", request.whole) and denoiser.schedule.num_steps is None:
        raise ValueError(
            f"{function}: whole must be False for a schedule without whole steps, got True with "
            f"{denoiser.schedule!r}"
        )
    unguided = _unguided(function, denoiser, request)
    plan = unguided.plan
    if request.whole and np.any(plan.times != np.rint(plan.times)):
        plan = plan.with_times(np.maximum(np.rint(plan.times), 1.0))
    plan = _with_guidance(function, plan, request)
    correct = None
    if request.guidance_rescale != 0.0 and not plan.is_guided:
        raise ValueError(
            f"{function}: guidance must be given with guidance_rescale, got no guided row"
        )
    threshold = threshold_for(denoiser, request, unguided.method)
    if threshold is not None or request.guidance_rescale != 0.0:
        correct = Correction(function, plan, request.guidance_rescale, threshold)
        plan = correct.plan
    return replace(unguided, plan=plan, correct=correct)


def threshold_for(denoiser: Denoiser, request: PlanRequest, method: str) -> Threshold | None:
    """Return the dynamic thresholding of a run, or None.

    A model's own thresholding goes with its clip range. It is left out for plans from the caller,
    which hold the range that they clamp to, and for tuned plans, which were measured without it.

    Args:
        denoiser: the model.
        request: the arguments of the caller.
        method: what `Resolved` says of the plan.
    """
    if not (isinstance(request.threshold, str) and request.threshold == "auto"):
        return request.threshold
    own = isinstance(request.clip, str) and method not in ("given", "tuned")
    return denoiser.threshold if own else None


def _unguided(function: str, denoiser: Denoiser, request: PlanRequest) -> Resolved:
    """Return the plan without guidance, and where it came from."""
    if isinstance(request.steps, Plan):
        return _callers_plan(function, denoiser, request.steps, request)
    name: Any = request.method
    if isinstance(name, str) and name == "auto":
        plan = _tuned_plan(denoiser, request)
        if plan is not None:
            return Resolved(check_plan(function, "steps", denoiser, plan), "tuned", "given")
        name = method_for(function, request.knobs, request.default)
    method = check_method(function, name, request.knobs)
    options = dict(request.knobs)
    if "variance" in method.knobs:
        options.setdefault("variance", denoiser.variance)
        check_variance(function, denoiser, options["variance"])
    options["clip"] = denoiser.clip_for(request.clip)
    options["prediction"] = denoiser.prediction
    if request.models_last and "last" in method.knobs:
        options.setdefault("last", denoiser.last)
    if not method.chooses_times:
        grid, label = make_grid(
            *(function, denoiser, request.steps, request.grid, request.grid_seed),
            method=method,
        )
        if request.whole:
            grid = grid.rounded()
        return Resolved(method.make(denoiser.schedule, grid, **options), name, label)
    even = request.grid in ("auto", "uniform")
    if not even or _are_times(request.steps):
        argument, rule, value = (
            ("steps", "be a number", request.steps)
            if even
            else ("grid", "be left out", request.grid)
        )
        raise ValueError(
            f'{function}: {argument} must {rule} with method="{name}", which chooses its times, '
            f"got {value!r}"
        )
    return Resolved(method.make(denoiser.schedule, request.steps, **options), name, "method")


def _callers_plan(function: str, denoiser: Denoiser, plan: Plan, request: PlanRequest) -> Resolved:
    """Return the plan that was passed as `steps`; ValueError if method, grid, .. are passed too."""
    arguments: dict[str, Any] = {
        "method": request.method,
        "grid": request.grid,
        "clip": request.clip,
    }
    for name, value in [*arguments.items(), *request.knobs.items()]:
        if name in request.knobs or not isinstance(value, str) or value != "auto":
            raise ValueError(
                f"{function}: {name} must be left out with a Plan, which decides it, got {value!r}"
            )
    return Resolved(check_plan(function, "steps", denoiser, plan), "given", "given")


def _tuned_plan(denoiser: Denoiser, request: PlanRequest) -> Plan | None:
    """Return the model's tuned plan for this number of steps; None if the request excludes it."""
    choices: tuple[Any, ...] = (request.grid, request.clip)
    chosen = any(not (isinstance(value, str) and value == "auto") for value in choices)
    thresholds = request.threshold is not None and not isinstance(request.threshold, str)
    if chosen or request.knobs or request.guidance is not None or thresholds:
        return None
    if _are_times(request.steps) or isinstance(request.steps, (bool, float, str)):
        return None
    steps: Any = request.steps
    try:
        return denoiser.plans.get(operator.index(steps))
    except TypeError:  # `make_grid` raises the error for such steps
        return None


def make_grid(
    function: str,
    denoiser: Denoiser,
    steps: Any,
    grid: str,
    grid_seed: int | None = None,
    *,
    method: Method | None = None,
    **objective: Any,
) -> tuple[Grid, str]:
    """Return the grid of a run, and the grid's name.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        steps: the times themselves, or their number K.
        grid: how K times are spread: a name of `grids.registry`, "auto" or "random".
        grid_seed: seed of the times of ``grid="random"``.
        method: the sampler, which determines what "auto" means; None is best for `objective`.
        **objective: options of `Profile.best_grid` for ``grid="auto"``.

    Returns:
        The grid, and its name; "given" for times from the caller.

    Raises:
        TypeError: a number of steps that is no integer.
        ValueError: a number of steps out of range, or a grid that does not go with `steps`.
    """
    schedule = denoiser.schedule
    check_grid_name(function, grid)
    if _are_times(steps):
        if grid not in ("auto", "uniform"):
            raise ValueError(f"{function}: grid must be left out with given times, got {grid!r}")
        if isinstance(steps, Grid):
            return steps, "given"
        times: Any = steps
        if isinstance(steps, Tensor):
            times = on_host(steps)
        try:
            made = Grid(times)
        except ValueError:
            _refuse_variances(function, times)
            raise
        if _may_be_timesteps(steps, made, schedule.num_steps):
            warn_user(
                f"{function}: steps must be times, from T = {schedule.num_steps} (noise) to 0 "
                f"(data), got whole numbers from {made.times[0]:g} to 0, which may be a network's "
                "timesteps, one less than its times; pass fs.Grid.from_indices(steps) if they are, "
                "and fs.Grid(steps) if they are times"
            )
        return made, "given"
    count = check_integer(function, "steps", steps, 1, schedule.num_steps)
    if grid == "auto":
        profile = denoiser.profile
        if profile is None:
            best = None
        elif method is None:
            best = profile.best_grid(count, **objective)
        else:
            best = profile.sampling_grid(count, method.order)
        default = "uniform" if method is None else auto_name(schedule, method.grid)
        return (best, "auto") if best else (GRIDS[default](schedule, count), default)
    if grid != "random":
        family = "ddim" if method is None else method.family
        return maker_for(grid, family)(schedule, count), grid
    if grid_seed is None:
        raise ValueError(
            f'{function}: grid_seed must be given with grid="random", got None; it determines the '
            "times"
        )
    return makers.random(noisiest(schedule), count, grid_seed), grid


def _refuse_variances(function: str, steps: Any) -> None:
    """Raise ValueError for a list of variances, cleanest first, as it stands in papers on audio."""
    values = check_vector("Grid", "times", steps)
    if len(values) > 1 and values[0] > 0.0 and values[-1] < 1.0 and np.all(np.diff(values) > 0.0):
        raise ValueError(
            f"{function}: steps must be falling times that end at 0 (data), got numbers that rise "
            f"from {values[0]:g} to {values[-1]:g}; pass a list of variances as variances="
        )


def _may_be_timesteps(steps: Any, grid: Grid, num_steps: int | None) -> bool:
    """Return whether the caller's whole numbers may be a network's timesteps instead of times.

    Schedulers hold theirs as tensors of integers. In a list or an array only T - 1 in
    front is suspicious.
    """
    if num_steps is None or not grid.integer or grid.times[0] >= num_steps:
        return False
    if isinstance(steps, Tensor):
        return not steps.is_floating_point()
    return grid.times[0] == num_steps - 1 and all(isinstance(t, int | np.integer) for t in steps)


def _are_times(steps: Any) -> bool:
    """Return whether `steps` holds the times themselves, not their number."""
    if isinstance(steps, (Tensor, np.ndarray)):
        return steps.ndim > 0
    return isinstance(steps, (Grid, Sequence)) and not isinstance(steps, str)


def _with_guidance(function: str, plan: Plan, request: PlanRequest) -> Plan:
    """Return the plan with the requested guidance scales."""
    scale, interval = request.guidance, request.guidance_interval
    if scale is not None:
        return plan.with_guidance(interval_scales(function, plan, scale, interval))
    if interval is not None and plan.is_guided:
        raise ValueError(
            f"{function}: guidance_interval must be left out with a guided Plan, got {interval!r}"
        )
    if interval is not None:
        raise ValueError(f"{function}: guidance must be given with guidance_interval, got None")
    return plan


def unconditional(
    function: str,
    denoiser: Denoiser,
    plan: Plan,
    uncond: Mapping[str, Any] | None,
    *,
    asked: bool,
) -> Mapping[str, Any] | None:
    """Return the conditions that mean "no condition"; None without guidance.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        plan: the plan to run.
        uncond: the caller's; None is the model's.
        asked: whether the caller asked for guidance, if only of scale 1.
    """
    if not asked and not plan.is_guided:
        if uncond is not None:
            raise ValueError(f"{function}: guidance must be given with uncond, got None")
        return None
    if uncond is not None and not isinstance(uncond, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{function}: uncond must be a mapping of keyword arguments, "
            f"got {type(uncond).__name__}"
        )
    values = denoiser.uncond if uncond is None else uncond
    if values is None:
        raise ValueError(
            f"{function}: uncond must be given with guidance, got None; it holds the keyword "
            "arguments that mean no condition"
        )
    return values
