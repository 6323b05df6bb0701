"""Chooses the times of a pipeline's run: the source scheduler's list, a grid or a given list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.grids.registry import maker_for
from fastsample.grids.sigmas import from_sigmas
from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.course import (
    Course,
    as_timesteps,
    method_course,
    pairs_course,
    plan_course,
)
from fastsample.integrations.diffusers.request import Request
from fastsample.integrations.diffusers.source_list import source_list
from fastsample.integrations.diffusers.translation import Translation, translate
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS, Method


@dataclass(frozen=True)
class Settings:
    """What the user of `FastSampleScheduler` chose.

    Attributes:
        method: a name of `fastsample.samplers.registry`, or "auto" for the source's own.
        grid: a name of `fastsample.grids.registry`, "source", or "auto".
        knobs: keyword arguments of the method.
        plans: plans by their numbers of network calls; they replace method and grid.
        compat: "diffusers" for the steps of `DDIMScheduler` to the letter.
    """

    method: str = "auto"
    grid: str = "auto"
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plans: Mapping[int, Plan] = field(default_factory=dict[int, Plan])
    compat: str | None = None


def course_of(
    function: str, source: Any, conventions: Conventions, settings: Settings, request: Request
) -> Course:
    """Return the course of a run.

    Args:
        function: the caller's name, for messages.
        source: the scheduler of diffusers that the settings replace.
        conventions: of the network.
        settings: what the user chose.
        request: the arguments of `set_timesteps`.

    Raises:
        ValueError: settings that do not go with the request or the source.
    """
    if settings.plans:
        return _planned(function, source, conventions, settings, request)
    auto = settings.method == "auto"
    translation = translate(function, source) if auto else Translation(settings.method)
    method = METHODS[translation.method]
    if method.chooses_times or "intervals" in method.knobs:
        plan = _own_plan(source, conventions, method, settings, request)
        return plan_course(function, plan_timesteps(plan, conventions, source), plan)
    timesteps, nodes = _times(source, conventions, translation, settings, request)
    if settings.compat == "diffusers" and request.timesteps is None and request.sigmas is None:
        return pairs_course(
            *(conventions, timesteps, nodes, source.config["num_train_timesteps"] // request.count),
            knobs={**translation.knobs, **settings.knobs},
            clips=translation.clips,
        )
    knobs = {**translation.knobs, **settings.knobs}
    last: Any = knobs.pop("last", None)
    if last is not None:
        end: Any = {"data": 0.0, "first": 1.0}.get(last, last)
        nodes = np.append(nodes[:-1], float(end))
    return method_course(
        *(function, conventions, timesteps, nodes, translation.method, knobs),
        clips=translation.clips,
    )


def _times(
    source: Any,
    conventions: Conventions,
    translation: Translation,
    settings: Settings,
    request: Request,
) -> tuple[Tensor, FloatArray]:
    """Return the timesteps `(K,)` and times `(K + 1,)` of a run."""
    listed = request.timesteps is not None or request.sigmas is not None
    # Flow models' lists are those of their schedulers, which shift them by the resolution.
    own_list = listed and not conventions.is_flow
    if not (own_list and (translation.by_index or settings.method != "auto")):
        auto = settings.grid == "auto" and (settings.method == "auto" or conventions.is_flow)
        if auto or own_list or settings.grid == "source":
            return source_list(source, conventions, request)
    grid = _own_grid(conventions, METHODS[translation.method], settings, request)
    last = 0.0 if conventions.last == "data" else 1.0
    nodes = np.append(grid.times[:-1], last)
    if nodes[-2] < nodes[-1]:
        nodes[-2] = nodes[-1]
    return _network_timesteps(grid.times[:-1], conventions, source), nodes


def _planned(
    function: str, source: Any, conventions: Conventions, settings: Settings, request: Request
) -> Course:
    """Return the course of the plan for the requested number of steps."""
    if request.timesteps is not None or (request.sigmas is not None and not conventions.is_flow):
        raise ValueError(
            f"{function}: timesteps and sigmas must be left out with a plan, which decides them"
        )
    plan = settings.plans.get(request.count)
    if plan is None:
        raise ValueError(
            f"{function}: num_inference_steps must be that of a plan, "
            f"{' or '.join(map(str, sorted(settings.plans)))}, got {request.count}"
        )
    return plan_course(function, plan_timesteps(plan, conventions, source), plan)


def plan_timesteps(plan: Plan, conventions: Conventions, source: Any) -> Tensor:
    """Return the timesteps that a plan's rows with a network call pass to the network."""
    return _network_timesteps(plan.times[plan.calls_network], conventions, source)


def _network_timesteps(times: FloatArray, conventions: Conventions, source: Any) -> Tensor:
    """Return the network's timesteps at times.

    Those of flow models are 1000 t, truncated where the source's are whole numbers.
    """
    if not conventions.is_flow:
        return as_timesteps(times - 1.0)
    return as_timesteps(times * source.config["num_train_timesteps"]).to(source.timesteps.dtype)


def _own_plan(
    source: Any, conventions: Conventions, method: Method, settings: Settings, request: Request
) -> Plan:
    """Return the plan of a method that chooses its times, or whose rows outnumber its steps."""
    steps: Any = request.count
    if not method.chooses_times:
        _, nodes = _times(source, conventions, Translation(settings.method), settings, request)
        steps = Grid(np.append(nodes[:-1], 0.0))
    return method.make(
        conventions.schedule,
        steps,
        clip=conventions.clip,
        prediction=conventions.prediction,
        **settings.knobs,
    )


def _own_grid(
    conventions: Conventions, method: Method, settings: Settings, request: Request
) -> Grid:
    """Return the grid of this package that was asked for, or that of a given list."""
    if not conventions.is_flow and request.timesteps is not None:
        return Grid(np.append(np.array(request.timesteps) + 1.0, 0.0))
    if not conventions.is_flow and request.sigmas is not None:
        return from_sigmas(conventions.schedule, np.append(request.sigmas, 0.0))
    name = method.grid if settings.grid in ("auto", "source") else settings.grid
    return maker_for(name, method.family)(conventions.schedule, request.count)
