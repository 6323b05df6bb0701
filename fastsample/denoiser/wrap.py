"""Turns the model that a user passes, a `Denoiser` or a bare callable, into a `Denoiser`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastsample.denoiser.denoiser import Denoiser, checked_shape
from fastsample.denoiser.training_mode import warn_of_training_mode
from fastsample.schedules.schedule import NoiseSchedule


def as_denoiser(model: Any, shape: Sequence[int] | None, schedule: Any, function: str) -> Denoiser:
    """Return the model as a `Denoiser`; a bare callable gets a linear schedule by default.

    Args:
        model: a `Denoiser`, or a callable ``(x, t) -> output`` that predicts epsilon.
        shape: shape of one sample; None for a `Denoiser`, which has one.
        schedule: the noise schedule of a bare callable, or None.
        function: the caller's name, for messages.

    Raises:
        TypeError: a model that is neither.
        ValueError: a bare callable without a shape, or a shape or schedule other than the model's.
    """
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
    ours = "fastsample.integrations.diffusers.denoiser"
    parts = ("unet", "transformer", "from_pipe")  # networks, or a method of every pipeline
    if hasattr(model, "scheduler") and any(hasattr(model, part) for part in parts):
        raise TypeError(
            f"{function}: model must be a Denoiser or a callable (x, t) -> output, got the "
            f"pipeline {type(model).__name__}; pass {ours}(pipe)"
        )
    if not callable(model):
        raise TypeError(
            f"{function}: model must be a Denoiser or a callable (x, t) -> output, "
            f"got {type(model).__name__}"
        )
    if shape is None:
        kind: Any = type(model)
        remedy = ""
        if any(base.__module__.startswith("diffusers.") for base in kind.__mro__):
            remedy = f"; of diffusers pass {ours}(model, scheduler)"
        raise ValueError(f"{function}: shape must be given for a bare callable, got None{remedy}")
    schedule = _default_schedule() if schedule is None else schedule
    stepless = isinstance(schedule, NoiseSchedule) and schedule.num_steps is None
    return Denoiser(model, schedule, shape, time="fraction" if stepless else "index")


@cache
def _default_schedule() -> NoiseSchedule:
    """Return the schedule of a bare callable, one object so that its plans are remembered."""
    return NoiseSchedule.linear()


def check_denoiser(function: str, denoiser: Any) -> None:
    """Raise TypeError for a model that is no `Denoiser`, and warn of one in training mode."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"{function}: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    warn_of_training_mode(function, denoiser.model)
