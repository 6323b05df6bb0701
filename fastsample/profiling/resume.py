"""The file of a profile that is being measured: written after every batch, gone on with later."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.profiling.profile import Profile
from fastsample.sampling.noise import make_identity

_SAME_MODEL = 1e-3  # relative: far above rounding on another machine, far below another training


def origin_of(
    denoiser: Denoiser,
    x0: Tensor,
    conditions: Conditions,
    sample_index: int,
) -> dict[str, Any]:
    """What tells two runs apart besides their settings: data and model, by one sample.

    Costs one network call with one sample.
    """
    first = x0[:1]
    identity = make_identity("profile", 0, sample_index, 1, x0.device)
    noise = ops.noise(*identity, denoiser.shape, dtype=torch.float32)
    model = AtTimes(denoiser, np.array([denoiser.schedule.T]), function="profile")
    output = model.output(noise, 0, conditions.part(0, first))[0].double().flatten()
    probe = [output.mean(), output.square().mean().sqrt(), *output[:4]]
    return {
        "sample_index": sample_index,
        "data": hashlib.sha256(first.double().cpu().numpy().tobytes()).hexdigest(),
        "model": [float(value) for value in probe],
    }


def resumed(empty: Profile, path: Path, trajectories: int) -> Profile:
    """What an earlier run left at the path, or the empty profile, which is written there at once.

    Args:
        empty: no samples yet, with the origin of this run.
        path: the file.
        trajectories: how many this run wants.

    Raises:
        ValueError: a file of another run, or a place that cannot be written.
    """
    origin = empty.origin or {}
    if not path.exists():
        written(empty, path)
        return empty
    try:
        earlier = Profile.load(path)
        total = empty.merge(earlier)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"profile: save must be a file of the same run, got {path} ({error})"
        ) from None
    known = earlier.origin or {}
    for name in ("sample_index", "data"):
        if known.get(name) != origin[name]:
            raise ValueError(
                f"profile: save must be a file of the same {name}, got {path} of "
                f"{known.get(name)!r} for {origin[name]!r}; remove it to begin again"
            )
    if not np.allclose(known["model"], origin["model"], rtol=_SAME_MODEL, atol=1e-6):
        raise ValueError(
            f"profile: save must be a file of the same model, got {path}, measured of one that "
            "answers otherwise; remove it to begin again"
        )
    expected = min(max(trajectories - origin["sample_index"], 0), earlier.count)
    found = 0 if earlier.trajectories is None else earlier.trajectories.count
    if found != expected:
        raise ValueError(
            f"profile: trajectories must be as in {path}, which has {found} for its "
            f"{earlier.count} samples, got {trajectories}"
        )
    return replace(total, origin=earlier.origin)


def written(profile: Profile, path: Path) -> None:
    """Save, and say so where that cannot be."""
    try:
        profile.save(path)
    except OSError as error:
        raise ValueError(f"profile: save must be writable, got {path} ({error})") from None
