"""Defines the file format of profiles: safetensors with the other fields in the header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample._support.files import TensorFormat


def _read_version_1(header: Any) -> tuple[dict[str, Any], None]:
    """Convert a version 1 header, which keeps its version under "format" and has no checksum."""
    return {**header, "format": FORMAT.name, "version": header.get("format")}, None


FORMAT = TensorFormat(
    "fastsample.profile",
    2,
    "Profile.load",
    "path must be a fastsample profile",
    last_without_checksum=1,
    framework="numpy",
    version_1_key="fastsample_profile",
    read_version_1=_read_version_1,
)


def settings_to_header(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Settings` for JSON, with null for an infinite bound of `clip`."""
    clip = [None if np.isinf(bound) else bound for bound in settings["clip"]]
    return {**settings, "clip": clip}


def settings_from_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Settings` from a header that `settings_to_header` made."""
    low, high = header["clip"]
    clip = (-np.inf if low is None else low, np.inf if high is None else high)
    return {**header, "clip": tuple(float(bound) for bound in clip)}
