"""Profiles on disk: safetensors with a header that says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fastsample._support.checks import FloatArray
from fastsample._support.files import write_atomically

_KEY, _FORMAT = "fastsample_profile", 1


def write(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> Path:
    """Save; an interruption leaves the old file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": _FORMAT, **header})
    # C order, but not ascontiguousarray, which makes vectors of numbers.
    packed = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return write_atomically(target, save(packed, metadata={_KEY: text}))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """(header, arrays); ValueError for anything that `write` did not write whole."""
    if not isinstance(path, (str, Path)):
        raise TypeError(f"Profile.load: path must be a path, got {type(path).__name__}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"Profile.load: path must name a file, got {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata[_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        reason = "no profile header" if isinstance(error, KeyError) else error
        raise ValueError(
            f"Profile.load: path must be a fastsample profile, got {path} ({reason})"
        ) from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise ValueError(
            f"Profile.load: path must be a fastsample profile of format {_FORMAT}, "
            f"got {found!r} in {path}"
        )
    return header, arrays


def settings_to_header(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an open end of the clip range is null."""
    clip = [None if np.isinf(bound) else bound for bound in settings["clip"]]
    return {**settings, "clip": clip}


def settings_from_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The way back."""
    low, high = header["clip"]
    clip = (-np.inf if low is None else low, np.inf if high is None else high)
    return {**header, "clip": tuple(float(bound) for bound in clip)}
