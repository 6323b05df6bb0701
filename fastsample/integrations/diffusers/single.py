"""Steps from timesteps that are in no list, as when a program steps before `set_timesteps`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastsample.integrations.diffusers.conventions import Conventions
from fastsample.integrations.diffusers.course import Course, method_course
from fastsample.integrations.diffusers.lists import Settings
from fastsample.integrations.diffusers.run import Run
from fastsample.integrations.diffusers.translation import translate
from fastsample.samplers.registry import METHODS


def single_course(
    function: str,
    source: Any,
    conventions: Conventions,
    settings: Settings,
    run: Run | None,
    value: float,
) -> Course:
    """Return the course of one step, from a timestep to the next one below it in the run.

    Without a run that is the trained timestep below. `DDIMScheduler` goes down by its stride.

    Args:
        function: the caller's name, for messages.
        source: the scheduler that is replaced.
        conventions: of the network.
        settings: what the user chose.
        run: the run, or None.
        value: the timestep.

    Raises:
        ValueError: a timestep out of range.
    """
    scale = int(source.config["num_train_timesteps"])
    flow = conventions.is_flow
    highest = scale if flow else scale - 1
    if not 0.0 <= value <= highest or (flow and value == 0.0):
        raise ValueError(
            f"{function}: timestep must be in {'(' if flow else '['}0, {highest}], got {value:g}"
        )
    time = value / scale if flow else value + 1.0
    unit = 1.0 / scale if flow else 1.0
    end = 0.0 if conventions.last == "data" else unit
    method, knobs, by_index = "ddim", {}, False
    if not settings.plans and settings.method == "auto":
        translation = translate(function, source)
        method, knobs = translation.method, dict(translation.knobs)
        by_index = translation.by_index and method == "ddim"
    elif not settings.plans and not METHODS[settings.method].chooses_times:
        method, knobs = settings.method, dict(settings.knobs)
    if method == "restart":
        method, knobs = "ddim", {}
    if run is None:
        earlier = time - unit
    elif by_index:
        earlier = time - scale // len(run)
    else:
        nodes = run.course.nodes
        below = nodes[nodes < time]
        earlier = float(below[0]) if len(below) else end
    earlier = earlier if earlier > 0.5 * unit else end
    earlier = min(earlier, time)
    timesteps = torch.tensor([value])
    return method_course(function, conventions, timesteps, np.array([time, earlier]), method, knobs)
