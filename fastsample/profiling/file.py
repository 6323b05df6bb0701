"""Profiles on disk: safetensors with a header that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample._support.files import TensorFormat


def _first(header: Any) -> tuple[dict[str, Any], None]:
    """Version 1 wrote its version as "format", and no checksum."""
    return {**header, "format": FORMAT.name, "version": header.get("format")}, None


FORMAT = TensorFormat(
    "fastsample.profile",
    2,
    "Profile.load",
    "path must be a fastsample profile",
    last_without_checksum=1,
    framework="numpy",
    version_1_key="fastsample_profile",
    read_version_1=_first,
)


def settings_to_header(settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an open end of the clip range is null."""
    clip = [None if np.isinf(bound) else bound for bound in settings["clip"]]
    return {**settings, "clip": clip}


def settings_from_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The way back."""
    low, high = header["clip"]
    clip = (-np.inf if low is None else low, np.inf if high is None else high)
    return {**header, "clip": tuple(float(bound) for bound in clip)}
