"""Chooses the times of a pipeline's run: the source scheduler's list, a grid or a given list."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fastsample._support.checks import FloatArray, check_integer, check_vector
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
from fastsample.integrations.diffusers.translation import Translation, translate
from fastsample.plans.plan import Plan
from fastsample.samplers.registry import METHODS

_SET_TIMESTEPS = "set_timesteps"
# float32 sigmas of a whole timestep differ by so much from those of the schedule in float64.
_SAME_LEVEL = 3e-6


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


@dataclass(frozen=True)
class Request:
    """The arguments of `set_timesteps`; see there."""

    steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None

    @property
    def count(self) -> int:
        """The number of steps."""
        if self.timesteps is not None:
            return len(self.timesteps)
        return len(self.sigmas) if self.sigmas is not None else self.steps or 0


def checked_request(
    steps: Any, timesteps: Any, sigmas: Any, mu: float | None, is_flow: bool, limit: int
) -> Request:
    """Return the arguments of `set_timesteps` after checking them.

    Args:
        steps: number of steps, or None with a list.
        timesteps: falling timesteps of the network, or None.
        sigmas: falling sigmas, or None.
        mu: shift of a flow-matching model's list, or None.
        is_flow: whether the network is a flow-matching model.
        limit: number of trained timesteps.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: both lists, none, or one that does not fall or is out of range.
    """
    name = _SET_TIMESTEPS
    if timesteps is not None and sigmas is not None:
        raise ValueError(f"{name}: timesteps and sigmas must not be given together, got both")
    if timesteps is None and sigmas is None:
        if steps is None:
            raise ValueError(
                f"{name}: num_inference_steps must be given without timesteps or sigmas, got None"
            )
        return Request(check_integer(name, "num_inference_steps", steps, 1, limit), mu=mu)
    kind, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    values = check_vector(name, kind, given)
    if not values.size or np.any(np.diff(values) >= 0):
        raise ValueError(f"{name}: {kind} must fall from step to step, got {values.tolist()}")
    if kind == "timesteps":
        highest = float(limit if is_flow else limit - 1)
        if values[0] > highest or values[-1] < 0.0 or (is_flow and values[-1] == 0.0):
            raise ValueError(
                f"{name}: timesteps must be in {'(' if is_flow else '['}0, {highest:g}], got "
                f"{values[0]:g} to {values[-1]:g}"
            )
        return Request(steps, timesteps=tuple(values.tolist()))
    if values[-1] < 0.0 or (is_flow and values[0] > 1.0 + 1e-6):
        raise ValueError(
            f"{name}: sigmas must be in [0, {'1' if is_flow else 'inf'}], got {values[0]:g} to "
            f"{values[-1]:g}"
        )
    if len(values) > 1 and values[-1] == 0.0:
        values = values[:-1]  # Lists of sigmas come with and without the final 0.
    return Request(steps, sigmas=tuple(values.tolist()), mu=mu)


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
    scale = source.config["num_train_timesteps"]
    if settings.plans:
        return _planned(function, source, conventions, settings, request)
    if settings.method == "auto":
        translation = translate(function, source)
        if translation.by_index:
            return _by_index(function, source, conventions, translation, settings, request)
        timesteps, nodes = _source_list(source, conventions, request)
        return _through(function, conventions, timesteps, nodes, translation, settings)
    method = METHODS[settings.method]
    translation = Translation(settings.method)
    if method.chooses_times or "intervals" in method.knobs:
        plan = _own_plan(conventions, settings, request)
        return plan_course(function, told(plan, conventions, source, scale), plan)
    last = 0.0 if conventions.last == "data" else 1.0
    if settings.grid == "source" or (conventions.is_flow and settings.grid == "auto"):
        timesteps, nodes = _source_list(source, conventions, request)
        return _through(function, conventions, timesteps, nodes, translation, settings)
    grid = _own_grid(conventions, settings, request, scale)
    nodes = np.append(grid.times[:-1], last)
    if len(nodes) > 1 and nodes[-2] < nodes[-1]:
        nodes[-2] = nodes[-1]
    timesteps = as_timesteps(grid.times[:-1] - 1.0)
    if conventions.is_flow:
        timesteps = _flow_timesteps(grid.times[:-1], source, scale)
    return _through(function, conventions, timesteps, nodes, translation, settings)


def _through(
    function: str,
    conventions: Conventions,
    timesteps: Tensor,
    nodes: FloatArray,
    translation: Translation,
    settings: Settings,
) -> Course:
    """Return the course of a translated sampler with the user's knobs through given times."""
    knobs = {**translation.knobs, **settings.knobs}
    last: Any = knobs.pop("last", None)
    if last is not None:
        end: Any = {"data": 0.0, "first": 1.0}.get(last, last)
        nodes = np.append(nodes[:-1], float(end))
    return method_course(
        *(function, conventions, timesteps, nodes, translation.method, knobs),
        clips=translation.clips,
    )


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
    scale = source.config["num_train_timesteps"]
    return plan_course(function, told(plan, conventions, source, scale), plan)


def told(plan: Plan, conventions: Conventions, source: Any, scale: int) -> Tensor:
    """Return the timesteps that a plan's rows with a network call pass to the network."""
    times = plan.times[plan.calls_network]
    if conventions.is_flow:
        return _flow_timesteps(times, source, scale)
    return as_timesteps(times - 1.0)


def _flow_timesteps(times: FloatArray, source: Any, scale: int) -> Tensor:
    """Return a flow model's timesteps: 1000 t, truncated where the source's are whole numbers."""
    values = as_timesteps(times * scale).to(source.timesteps.dtype)
    return values


def _own_plan(conventions: Conventions, settings: Settings, request: Request) -> Plan:
    """Return the plan of a method that chooses its times, or whose rows outnumber its steps."""
    method = METHODS[settings.method]
    steps: Any = request.count
    if not method.chooses_times:
        steps = maker_for(_grid_name(settings), method.family)(conventions.schedule, steps)
    return method.make(
        conventions.schedule,
        steps,
        clip=conventions.clip,
        prediction=conventions.prediction,
        **settings.knobs,
    )


def _grid_name(settings: Settings) -> str:
    """Return the grid's name, where "auto" is the method's own."""
    return METHODS[settings.method].grid if settings.grid == "auto" else settings.grid


def _own_grid(conventions: Conventions, settings: Settings, request: Request, scale: int) -> Grid:
    """Return the grid of a method of this package, or of a given list."""
    if request.timesteps is not None:
        times = np.array(request.timesteps)
        return Grid(np.append(times / scale if conventions.is_flow else times + 1.0, 0.0))
    if request.sigmas is not None and not conventions.is_flow:
        return from_sigmas(conventions.schedule, np.append(request.sigmas, 0.0))
    family = METHODS[settings.method].family
    return maker_for(_grid_name(settings), family)(conventions.schedule, request.count)


def _by_index(
    function: str,
    source: Any,
    conventions: Conventions,
    translation: Translation,
    settings: Settings,
    request: Request,
) -> Course:
    """Return the course of a scheduler that steps from whole timestep to whole timestep."""
    last = 0.0 if conventions.last == "data" else 1.0
    if request.timesteps is not None or request.sigmas is not None:
        grid = _own_grid(conventions, settings, request, 0)
        timesteps, nodes = as_timesteps(grid.times[:-1] - 1.0), grid.times[:-1]
    else:
        _call_set_timesteps(source, {"num_inference_steps": request.count})
        timesteps = source.timesteps.clone()
        nodes = timesteps.double().numpy() + 1.0
        if nodes[-1] < 1.0:  # Rounding gives "trailing" one timestep of -1 for some numbers.
            timesteps, nodes = timesteps[:-1], nodes[:-1]
        if settings.compat == "diffusers" and translation.method == "ddim":
            earlier = nodes - source.config["num_train_timesteps"] // request.count
            earlier = np.where(earlier < 1.0, last, earlier)
            return pairs_course(conventions, timesteps, np.append(nodes, last), earlier)
    return _through(
        *(function, conventions, timesteps, np.append(nodes, last), translation, settings)
    )


def _source_list(
    source: Any, conventions: Conventions, request: Request
) -> tuple[Tensor, FloatArray]:
    """Return the timesteps `(K,)` and times `(K + 1,)` of the source's own `set_timesteps`."""
    accepted = inspect.signature(source.set_timesteps).parameters
    arguments = {
        "num_inference_steps": request.steps,
        "timesteps": request.timesteps,
        "sigmas": request.sigmas,
        "mu": request.mu,
    }
    given: dict[str, Any] = {k: v for k, v in arguments.items() if v is not None}
    schedule = conventions.schedule
    if not conventions.is_flow and request.sigmas is not None:
        # Only some schedulers take sigmas; they are told the exact times between the steps.
        grid = from_sigmas(schedule, np.append(request.sigmas, 0.0))
        last = 0.0 if conventions.last == "data" else 1.0
        return as_timesteps(grid.times[:-1] - 1.0), np.append(grid.times[:-1], last)
    refused = [name for name in given if name not in accepted and name != "mu"]
    if refused:
        raise ValueError(
            f"{_SET_TIMESTEPS}: {refused[0]} must be left out with {type(source).__name__}, which "
            f'takes none, got {given[refused[0]]}; pass method="fastsample" for lists of your own'
        )
    given = {name: value for name, value in given.items() if name in accepted}
    for name in ("timesteps", "sigmas"):
        if name in given:
            given.pop("num_inference_steps", None)
            given[name] = list(given[name])
    _call_set_timesteps(source, given)
    timesteps: Tensor = source.timesteps.cpu().clone()
    sigmas: FloatArray = source.sigmas.cpu().double().numpy()
    if conventions.is_flow:
        return timesteps, sigmas
    return timesteps, _times_of(conventions, sigmas, timesteps.double().numpy() + 1.0)


def _call_set_timesteps(source: Any, arguments: Mapping[str, Any]) -> None:
    """Call the source's `set_timesteps` on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's deprecations of what diffusers does
        source.set_timesteps(**arguments, device="cpu")


def _times_of(conventions: Conventions, sigmas: FloatArray, told_times: FloatArray) -> FloatArray:
    """Return the times `(K + 1,)` of a list of ratios sigma / alpha, which ends in 0 or above.

    Where a sigma is that of the told whole time, up to rounding in float32, the time is that one.
    """
    schedule = conventions.schedule
    ratios = sigmas[:-1] if sigmas[-1] == 0.0 else sigmas
    lowest = float(schedule.log_snr(schedule.T))
    times = schedule.time_at_log_snr(np.maximum(-2.0 * np.log(ratios), lowest))
    count = len(told_times)
    whole: FloatArray = np.minimum(np.maximum(np.rint(told_times), 1.0), schedule.T)
    alphas, levels = schedule.levels(whole)
    same = np.abs(levels - ratios[:count] * alphas) <= _SAME_LEVEL * ratios[:count] * alphas
    times[:count] = np.where(same & (told_times == whole), whole, times[:count])
    if sigmas[-1] == 0.0:
        return np.append(times, 0.0)
    if abs(times[-1] - 1.0) < 1e-3:
        times[-1] = 1.0  # the first trained step, where `final_sigmas_type="sigma_min"` ends
    return times
