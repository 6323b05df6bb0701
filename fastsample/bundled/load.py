"""Loads a `Denoiser` by the name of a bundled model or from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fastsample._support.tensors import make_device
from fastsample.bundled.checkpoint import load_checkpoint
from fastsample.bundled.digits import load_digits_model
from fastsample.bundled.mnist import load_mnist_model
from fastsample.bundled.swirl import load_swirl_model
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.files import load_plans
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.profiling.profile import Profile
from fastsample.schedules.schedule import NoiseSchedule

_FOLDER = Path(__file__).parent
BUNDLED = ("digits", "mnist")
"""The models that come with the package, by name; each has its files in this folder."""


def load(name: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Denoiser:
    """Load a bundled model, or a model file of this package.

    All bundled models have samples in [-1, 1], optional labels 0..9 as ``cond={"y": ...}``, their
    profile and tuned plans:

    - "digits": 8 x 8 handwritten digits `(1, 8, 8)`, with a learned-range variance; small and fast.
    - "mnist": 28 x 28 handwritten digits `(1, 28, 28)`, with a learned-range variance.

    A model file has the plans that its model was trained for, if any.

    Args:
        name: a name of those above, or the path of a file written by ``fastsample train``,
            `examples/train_digits.py` or `examples/train_mnist.py`.
        device: device to run on; None is the CPU.

    Raises:
        TypeError: `name` is no string or path.
        FileNotFoundError: `name` is neither a bundled model nor a file.
        ValueError: the file is damaged or is no model file, or the device is not available.
    """
    if not isinstance(name, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"load: name must be a string or a path, got {name!r}")
    bundled = name in BUNDLED
    path = _FOLDER / f"{name}.safetensors" if bundled else name
    if not os.path.isfile(path):
        names = ", ".join(f'"{known}"' for known in BUNDLED)
        raise FileNotFoundError(f"load: name must be {names} or a file, got {os.fspath(name)!r}")
    target = make_device("load", device) or torch.device("cpu")
    network, metadata = _NETWORKS[_kind_of(path)](path)
    labelled = metadata["model"] != "SwirlNet"
    denoiser = Denoiser(
        network,
        NoiseSchedule.from_dict(metadata["schedule"]),
        metadata["shape"],
        prediction=metadata.get("prediction", "epsilon"),
        variance=metadata.get("variance", "small"),
        clip=_clip_from(metadata.get("clip")),
        time=metadata.get("time", "index" if labelled else "log_snr"),
        uncond={"y": metadata["null_class"]} if labelled else None,
        device=target,
    )
    if not bundled:
        return denoiser.with_plans(_plans_from(metadata))
    denoiser = denoiser.with_profile(Profile.load(_FOLDER / f"{name}-profile.safetensors"))
    return denoiser.with_plans(load_plans(_FOLDER / f"{name}-plans.json"))


_NETWORKS: dict[str, Callable[[Any], tuple[nn.Module, dict[str, Any]]]] = {
    "SwirlNet": load_swirl_model,
    "DigitsUNet": load_digits_model,
    "MnistUNet": load_mnist_model,
}


def _kind_of(path: str | os.PathLike[str]) -> str:
    """Return the name of the network in a model file; ValueError for other files."""
    try:
        metadata = load_checkpoint(path)[1]
        kind = metadata.get("model")
        if kind not in _NETWORKS:
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
