"""The file format of profiles: safetensors with a header of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample._support.files import TensorFormat


def _read_version_1(header: Any) -> tuple[dict[str, Any], None]:
    """The header of version 1 as one of today; it has its version as "format", and no checksum."""
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
    """The fields of `Settings` as JSON; null stands for an infinite end of the clip range."""
    clip = [None if np.isinf(bound) else bound for bound in settings["clip"]]
    return {**settings, "clip": clip}


def settings_from_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` from a header that `settings_to_header` made."""
    low, high = header["clip"]
    clip = (-np.inf if low is None else low, np.inf if high is None else high)
    return {**header, "clip": tuple(float(bound) for bound in clip)}
