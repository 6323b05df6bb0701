"""Loads a `Denoiser` by the name of a bundled model or from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
    """Load a bundled model, or a model file of this package.

    "digits" is a model of 8 x 8 handwritten digits, with samples `(1, 8, 8)` in [-1, 1], a
    learned-range variance, and optional labels 0..9 as ``cond={"y": ...}``. It comes with its
    profile and tuned plans. A model file has the plans that its model was trained for, if any.

    Args:
        name: "digits", or the path of a file written by ``fastsample train`` or
            `examples/train_digits.py`.
        device: device to run on; None is the CPU.

    Raises:
        TypeError: `name` is no string or path.
        FileNotFoundError: `name` is neither a bundled model nor a file.
        ValueError: the file is damaged or is no model file, or the device is not available.
    """
    if not isinstance(name, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"load: name must be a string or a path, got {name!r}")
    if name != "digits" and not os.path.isfile(name):
        raise FileNotFoundError(f'load: name must be "digits" or a file, got {os.fspath(name)!r}')
    target = make_device("load", device) or torch.device("cpu")
    if name != "digits" and _kind_of(name) == "SwirlNet":
        swirl, metadata = load_swirl_model(name)
        schedule = NoiseSchedule.from_dict(metadata["schedule"])
        denoiser = Denoiser(swirl, schedule, metadata["shape"], time="log_snr", device=target)
        return denoiser.with_plans(_plans_from(metadata))
    model, metadata = load_digits_model(None if name == "digits" else name)
    denoiser = Denoiser(
        model,
        NoiseSchedule.from_dict(metadata["schedule"]),
        metadata["shape"],
        prediction=metadata["prediction"],
        variance=metadata["variance"],
        clip=_clip_from(metadata["clip"]),
        uncond={"y": metadata["null_class"]},
        device=target,
    )
    if name != "digits":
        return denoiser.with_plans(_plans_from(metadata))
    denoiser = denoiser.with_profile(Profile.load(_DIGITS_PROFILE))
    return denoiser.with_plans(load_plans(_DIGITS_PLANS))


def _kind_of(path: str | os.PathLike[str]) -> str:
    """Return the name of the network in a model file; ValueError for other files."""
    try:
        metadata = load_checkpoint(path)[1]
        kind = metadata.get("model")
        if kind not in ("SwirlNet", "DigitsUNet"):
            raise ValueError(f"its model is {kind!r}")
    except ValueError as error:
        raise ValueError(
            'load: name must be "digits" or a model file that `fastsample train` wrote, got '
            f"{os.fspath(path)!r} ({error}); load the weights of your own network into it, and "
            "pass fs.Denoiser(network, schedule, shape)"
        ) from error
    return kind


def _plans_from(metadata: Mapping[str, Any]) -> list[Plan]:
    """Return the plans that the model of a file was trained for."""
    return [Plan.from_json(json.dumps(entry)) for entry in metadata.get("plans", ())]


def _clip_from(value: Any) -> Clip:
    """Return the clip range from metadata, where JSON stores a pair as a list."""
    return cast("Clip", tuple(cast("list[float]", value)) if isinstance(value, list) else value)
