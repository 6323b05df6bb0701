"""The list of timesteps of the scheduler that is replaced, and the times that it means."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.grids.sigmas import from_sigmas
from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.course import as_timesteps
from fastsample.integrations.diffusers.request import SET_TIMESTEPS, Request

# float32 sigmas of a whole timestep differ by so much from those of the schedule in float64.
_SAME_LEVEL = 3e-6


def source_list(
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
        # Only some schedulers take sigmas; their networks get the exact times between the steps.
        grid = from_sigmas(schedule, np.append(request.sigmas, 0.0))
        last = 0.0 if conventions.last == "data" else 1.0
        return as_timesteps(grid.times[:-1] - 1.0), np.append(grid.times[:-1], last)
    refused = [name for name in given if name not in accepted and name != "mu"]
    if refused:
        raise ValueError(
            f"{SET_TIMESTEPS}: {refused[0]} must be left out with {type(source).__name__}, which "
            f'takes none, got {given[refused[0]]}; pass method="fastsample" for lists of your own'
        )
    given = {name: value for name, value in given.items() if name in accepted}
    for name in ("timesteps", "sigmas"):
        if name in given:
            given.pop("num_inference_steps", None)
            given[name] = list(given[name])
    _call_set_timesteps(source, given)
    timesteps: Tensor = source.timesteps.cpu().clone()
    timestep_times: FloatArray = timesteps.double().numpy() + 1.0
    if getattr(source, "sigmas", None) is None:  # such as DDIM's, which counts in timesteps
        if (
            timestep_times[-1] < 1.0
        ):  # Rounding gives "trailing" one timestep of -1 for some numbers.
            timesteps, timestep_times = timesteps[:-1], timestep_times[:-1]
        return timesteps, np.append(timestep_times, 0.0 if conventions.last == "data" else 1.0)
    sigmas: FloatArray = source.sigmas.cpu().double().numpy()
    if not np.all(np.isfinite(sigmas)):
        raise ValueError(
            f"{SET_TIMESTEPS}: the list of {type(source).__name__} must be finite, got "
            f"{sigmas.tolist()}; ask for more steps, or pass a grid of this package"
        )
    if conventions.is_flow:
        return timesteps, sigmas
    return timesteps, _times_of(conventions, sigmas, timestep_times)


def _call_set_timesteps(source: Any, arguments: Mapping[str, Any]) -> None:
    """Call the source's `set_timesteps` on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's deprecations of what diffusers does
        source.set_timesteps(**arguments, device="cpu")


def _times_of(
    conventions: Conventions, sigmas: FloatArray, timestep_times: FloatArray
) -> FloatArray:
    """Return the times `(K + 1,)` of a list of ratios sigma / alpha, which ends in 0 or above.

    Where a sigma is that of the whole timestep, up to rounding in float32, the time is that one.
    """
    schedule = conventions.schedule
    ratios = sigmas[:-1] if sigmas[-1] == 0.0 else sigmas
    lowest = float(schedule.log_snr(schedule.T))
    times = schedule.time_at_log_snr(np.maximum(-2.0 * np.log(ratios), lowest))
    count = len(timestep_times)
    whole: FloatArray = np.minimum(np.maximum(np.rint(timestep_times), 1.0), schedule.T)
    alphas, levels = schedule.levels(whole)
    same = np.abs(levels - ratios[:count] * alphas) <= _SAME_LEVEL * ratios[:count] * alphas
    times[:count] = np.where(same & (timestep_times == whole), whole, times[:count])
    if sigmas[-1] == 0.0:
        return np.append(times, 0.0)
    if abs(times[-1] - 1.0) < 1e-3:
        times[-1] = 1.0  # the first trained step, where `final_sigmas_type="sigma_min"` ends
    return times
