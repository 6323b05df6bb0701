"""From what people have, a name, a file or a bare callable, to a `Denoiser`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastsample.denoiser import Denoiser, checked_shape
from fastsample.devices import make_device
from fastsample.models import load_checkpoint, load_digits_model, load_swirl_model
from fastsample.plan import Plan
from fastsample.plan_file import load_plans
from fastsample.profiles import Profile
from fastsample.rows import Clip
from fastsample.schedule import NoiseSchedule

_BUNDLED = Path(__file__).parent / "models"
_DIGITS_PROFILE = _BUNDLED / "digits-profile.safetensors"
_DIGITS_PLANS = _BUNDLED / "digits-plans.json"


def load(name: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Denoiser:
    """A trained model that comes with the package, or one of its checkpoints from a file.

    Args:
        name: "digits" (8 x 8 handwritten digits in [-1, 1], learned-range variance, optional
            labels as ``cond={"y": ...}``, with its profile and tuned plans), or the path of a file
            written by ``fastsample train`` or `examples/train_digits.py`.
        device: where to run; None is the CPU.

    Raises:
        FileNotFoundError: neither a bundled model nor a file.
        ValueError: a damaged or foreign file.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"load: name must be a string or a path, got {name!r}")
    if name != "digits" and not os.path.isfile(name):
        raise FileNotFoundError(f'load: name must be "digits" or a file, got {os.fspath(name)!r}')
    place = make_device("load", device) or torch.device("cpu")
    if name != "digits" and load_checkpoint(name)[1].get("model") == "SwirlNet":
        swirl, metadata = load_swirl_model(name)
        schedule = NoiseSchedule.from_dict(metadata["schedule"])
        found = Denoiser(swirl, schedule, metadata["shape"], time="log_snr", device=place)
        return found.with_plans(_plans_from(metadata))
    model, metadata = load_digits_model(None if name == "digits" else name)
    found = Denoiser(
        model,
        NoiseSchedule.from_dict(metadata["schedule"]),
        metadata["shape"],
        prediction=metadata["prediction"],
        variance=metadata["variance"],
        clip=_clip_from(metadata["clip"]),
        uncond={"y": metadata["null_class"]},
        device=place,
    )
    if name != "digits":
        return found.with_plans(_plans_from(metadata))
    return found.with_profile(Profile.load(_DIGITS_PROFILE)).with_plans(load_plans(_DIGITS_PLANS))


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


def _plans_from(metadata: Mapping[str, Any]) -> list[Plan]:
    """Of a model that was trained for them."""
    return [Plan.from_json(json.dumps(entry)) for entry in metadata.get("plans", ())]


def _clip_from(value: Any) -> Clip:
    return tuple(value) if isinstance(value, list) else value
