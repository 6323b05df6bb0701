"""From what users pass as a model, a `Denoiser` or a bare callable, to a `Denoiser`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastsample.denoiser.denoiser import Denoiser, checked_shape
from fastsample.schedules.schedule import NoiseSchedule


def as_denoiser(
    model: Any, shape: Sequence[int] | None, schedule: NoiseSchedule | None, function: str
) -> Denoiser:
    """The model as a `Denoiser`; for a bare callable the schedule defaults to linear."""
    if isinstance(model, Denoiser):
        if shape is not None and checked_shape(shape) != model.shape:
            raise ValueError(
                f"{function}: shape must be the model's {model.shape}, got {tuple(shape)}"
            )
        if schedule is not None and schedule != model.schedule:
            raise ValueError(
                f"{function}: schedule must be the model's {model.schedule!r}, got {schedule!r}"
            )
        return model
    if hasattr(model, "scheduler") and (hasattr(model, "unet") or hasattr(model, "transformer")):
        raise TypeError(
            f"{function}: model must be a Denoiser or a callable (x, t) -> output, got the "
            f"pipeline {type(model).__name__}; "
            "wrap its network: Denoiser(pipe.unet, schedule, shape)"
        )
    if not callable(model):
        raise TypeError(
            f"{function}: model must be a Denoiser or a callable (x, t) -> output, "
            f"got {type(model).__name__}"
        )
    if shape is None:
        raise ValueError(f"{function}: shape must be given for a bare callable, got None")
    schedule = NoiseSchedule.linear() if schedule is None else schedule
    stepless = isinstance(schedule, NoiseSchedule) and schedule.num_steps is None
    return Denoiser(model, schedule, shape, time="fraction" if stepless else "index")
