"""From the arguments of `sample` and `invert` to a plan."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import check_integer
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids import makers
from fastsample.grids.grid import Grid
from fastsample.grids.registry import GRIDS, noisiest
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS
from fastsample.sampling.guidance import interval_scales

Steps: TypeAlias = int | Grid | Plan | Sequence[float]


class Knobs(TypedDict, total=False):
    """What some methods take besides `eta` and `variance`; see `samplers.registry`."""

    sigma_hat: bool
    rederive: bool
    approximation: Literal["steps", "var"]
    spacing: Literal["linear", "quadratic"]
    kappa: float
    extended: bool
    order: int
    stochastic: bool
    lower_order_final: bool
    corrected: bool


def make_dtype(dtype: torch.dtype | None, start: Any, denoiser: Denoiser) -> torch.dtype:
    """The samples' dtype: as asked for, else that of `start`, else the model's."""
    kind = dtype or (start.dtype if isinstance(start, Tensor) else denoiser.dtype)
    if kind not in DTYPE_CODES:
        raise TypeError(
            f"sample: dtype must be one of {[str(known) for known in DTYPE_CODES]}, got {kind}"
        )
    return kind


def make_grid(
    denoiser: Denoiser,
    steps: Any,
    grid: str,
    function: str,
    seed: Any = None,
    **objective: Any,
) -> Grid:
    """The times: given as they are, or K of them spread as `grid` says.

    `objective` is what "auto" asks of the model's profile, see `Profile.best_grid`.
    """
    schedule = denoiser.schedule
    names = sorted([*GRIDS, "auto", "random"])
    if not isinstance(grid, str) or grid not in names:
        raise ValueError(f"{function}: grid must be one of {names}, got {grid!r}")
    if _are_times(steps):
        if grid not in ("auto", "uniform"):
            raise ValueError(f"{function}: grid must be left out with given times, got {grid!r}")
        if isinstance(steps, Grid):
            return steps
        return Grid(steps.tolist() if isinstance(steps, Tensor) else steps)
    count = check_integer(function, "steps", steps, 1, schedule.num_steps)
    if grid == "auto":
        profile = denoiser.profile
        best = None if profile is None else profile.best_grid(count, **objective)
        return best or GRIDS["uniform"](schedule, count)
    if grid != "random":
        return GRIDS[grid](schedule, count)
    if np.ndim(seed) != 0 or seed is None:
        raise ValueError(
            f'{function}: grid must not be "random" without one seed for the whole batch; '
            "pass steps=grids.random(T, K, seed)"
        )
    return makers.random(noisiest(schedule), count, seed)


def make_plan(
    denoiser: Denoiser,
    steps: Steps,
    *,
    method: str,
    grid: str,
    clip: Any,
    knobs: Mapping[str, Any],
    seed: Any = None,
    function: str = "sample",
) -> Plan:
    """The plan of the run; a given one is checked against the model."""
    if isinstance(steps, Plan):
        given = {
            "method": (method, "auto", "ddim"),
            "grid": (grid, "auto", "uniform"),
            "clip": (clip, "auto"),
        }
        given |= {name: (value, ...) for name, value in knobs.items()}
        for name, (value, *defaults) in given.items():
            if not any(value is d or (np.ndim(value) == 0 and value == d) for d in defaults):
                raise ValueError(
                    f"{function}: {name} must be left out with a Plan, which decides it, "
                    f"got {value!r}"
                )
        return _checked_plan(denoiser, steps, function)
    if isinstance(method, str) and method == "auto":
        stored = _stored_plan(denoiser, steps, grid, clip, knobs)
        if stored is not None:
            return _checked_plan(denoiser, stored, function)
        method = "ddim"
    chosen = METHODS.get(method) if isinstance(method, str) else None
    if chosen is None:
        raise ValueError(f"{function}: method must be one of {['auto', *METHODS]}, got {method!r}")
    for name, value in knobs.items():
        if not any(name in known.knobs for known in METHODS.values()):
            raise TypeError(
                f"{function}: {name} must be an argument of it or a method's knob, got {value!r}"
            )
        if name not in chosen.knobs:
            raise ValueError(
                f'{function}: {name} must be left out with method="{method}", got {value!r}; '
                f"its knobs are {list(chosen.knobs) or 'none'}"
            )
    options = dict(knobs)
    if "variance" in chosen.knobs:
        options.setdefault("variance", denoiser.variance)
        learned = options["variance"]
        if isinstance(learned, str) and learned == "learned_range" != denoiser.variance:
            raise ValueError(
                f'{function}: variance must not be "learned_range" for a model without one; make '
                'the Denoiser with variance="learned_range" if its output has 2C channels'
            )
    options["clip"] = denoiser.clip if isinstance(clip, str) and clip == "auto" else clip
    options["prediction"] = denoiser.prediction
    if not chosen.chooses_times:
        times = make_grid(denoiser, steps, grid, function, seed)
        return chosen.make(denoiser.schedule, times, **options)
    even = grid in ("auto", "uniform")
    if not even or _are_times(steps):
        name, value = ("steps", steps) if even else ("grid", grid)
        raise ValueError(
            f"{function}: {name} must {'be left out' if name == 'grid' else 'be a number'} with "
            f'method="{method}", which chooses its times, got {value!r}'
        )
    return chosen.make(denoiser.schedule, steps, **options)


def _stored_plan(
    denoiser: Denoiser, steps: Any, grid: Any, clip: Any, knobs: Mapping[str, Any]
) -> Plan | None:
    """The model's own plan of so many steps, unless something else was asked for."""
    own = isinstance(grid, str) and grid == "auto" and isinstance(clip, str) and clip == "auto"
    if not own or knobs or _are_times(steps) or isinstance(steps, (bool, float, str)):
        return None
    try:
        return denoiser.plans.get(operator.index(steps))
    except TypeError:  # `make_grid` says what is wrong with it
        return None


def _are_times(steps: Any) -> bool:
    """Whether `steps` is the times themselves, not their number."""
    if isinstance(steps, Tensor):
        return steps.dim() > 0
    return isinstance(steps, (Grid, Sequence, np.ndarray)) and not isinstance(steps, str)


def _checked_plan(denoiser: Denoiser, plan: Plan, function: str) -> Plan:
    if plan.inverts:
        raise ValueError(f"{function}: steps must be a plan that ends at 0, got an inverting one")
    if plan.prediction != denoiser.prediction:
        raise ValueError(
            f"{function}: steps must be a plan for {denoiser.prediction!r} prediction, "
            f"got one for {plan.prediction!r}"
        )
    if plan.schedule is not None and plan.schedule != denoiser.schedule:
        raise ValueError(
            f"{function}: steps must be a plan for {denoiser.schedule!r}, "
            f"got one for {plan.schedule!r}"
        )
    if plan.nodes[0] > denoiser.schedule.T:
        raise ValueError(
            f"{function}: steps must start at or below T = {denoiser.schedule.T:g}, "
            f"got {plan.nodes[0]:g}"
        )
    if plan.learns_variance and denoiser.variance != "learned_range":
        raise ValueError(
            f"{function}: steps must not be a plan with learned variance for a model without one"
        )
    return plan


def make_guidance(
    denoiser: Denoiser,
    plan: Plan,
    guidance: Any,
    interval: Any,
    uncond: Mapping[str, Any] | None,
) -> tuple[Plan, Mapping[str, Any] | None]:
    """The plan with its scales, and the arguments that mean "no condition" (None: no guidance)."""
    if guidance is None and not plan.is_guided:
        if uncond is not None:
            raise ValueError("sample: guidance must be given with uncond, got None")
        if interval is not None:
            raise ValueError("sample: guidance must be given with guidance_interval, got None")
        return plan, None
    if guidance is None and interval is not None:
        raise ValueError(
            f"sample: guidance_interval must be left out with a guided Plan, got {interval!r}"
        )
    if guidance is not None:
        plan = plan.with_guidance(interval_scales(plan, guidance, interval))
    absent = denoiser.uncond if uncond is None else uncond
    if absent is None:
        raise ValueError(
            "sample: uncond must be given with guidance, got None; it holds the keyword arguments "
            "that mean no condition"
        )
    return plan, absent
