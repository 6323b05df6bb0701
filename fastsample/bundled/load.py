"""From what people have, a name, a file or a bare callable, to a `Denoiser`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastsample._support.tensors import make_device
from fastsample.bundled.checkpoint import load_checkpoint
from fastsample.bundled.digits import load_digits_model
from fastsample.bundled.swirl import load_swirl_model
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.files import load_plans
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.profiling.profile import Profile
from fastsample.schedules.schedule import NoiseSchedule

_DIGITS_PROFILE = Path(__file__).parent / "digits-profile.safetensors"
_DIGITS_PLANS = Path(__file__).parent / "digits-plans.json"


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


def _plans_from(metadata: Mapping[str, Any]) -> list[Plan]:
    """Of a model that was trained for them."""
    return [Plan.from_json(json.dumps(entry)) for entry in metadata.get("plans", ())]


def _clip_from(value: Any) -> Clip:
    return tuple(value) if isinstance(value, list) else value
