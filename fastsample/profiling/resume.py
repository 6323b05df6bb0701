"""Saves a profile after every batch, so that an interrupted measurement can be resumed."""

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
from fastsample.ops.draws import NOISE_VERSION, PROFILE_DRAW
from fastsample.profiling.profile import Profile
from fastsample.sampling.noise import make_identity

# This relative tolerance is far above the rounding differences between machines and far below
# the change of the output by more training.
_SAME_MODEL = 1e-3


def run_origin(
    denoiser: Denoiser,
    x0: Tensor,
    conditions: Conditions,
    sample_index: int,
) -> dict[str, Any]:
    """Return fields that identify the data and the model, to refuse the file of another run.

    Takes one network call with one sample.

    Args:
        denoiser: the model.
        x0: the first batch of the data.
        conditions: extra arguments of the network.
        sample_index: global index of the first sample.

    Returns:
        The noise's version, the index, a checksum of the first sample and a few numbers of the
        network's output, fit for JSON.
    """
    first = x0[:1]
    identity = make_identity("profile", 0, sample_index, 1, x0.device)
    noise = ops.noise(*identity, denoiser.shape, draw=PROFILE_DRAW, dtype=torch.float32)
    model = AtTimes(denoiser, np.array([denoiser.schedule.T]), function="profile")
    output = model.output(noise, 0, conditions.part(0, first))[0].double().flatten()
    probe = [output.mean(), output.square().mean().sqrt(), *output[:4]]
    return {
        "noise": NOISE_VERSION,
        "sample_index": sample_index,
        "data": hashlib.sha256(first.double().cpu().numpy().tobytes()).hexdigest(),
        "model": [float(value) for value in probe],
    }


def load_or_create(
    empty: Profile, path: Path, trajectories: int, *, auto_bins: bool = False
) -> Profile:
    """Return the profile that an earlier run saved; without a file save and return `empty`.

    Args:
        empty: the profile of no samples, with the origin of this run.
        path: the file.
        trajectories: number of trajectories of this run.
        auto_bins: whether a file without bins is of the same run: data outside of [-1, 1] have
            dropped them there.

    Raises:
        ValueError: a file of another run, or a path that cannot be written.
    """
    origin = empty.origin or {}
    if not path.exists():
        save_profile(empty, path)
        return empty
    try:
        earlier = Profile.load(path)
        if auto_bins and not earlier.has_bins:
            empty = empty.without_bins()
        total = empty.merge(earlier)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"profile: save must be a file of the same run, got {path} ({error})"
        ) from None
    known = earlier.origin or {}
    if known.get("noise", 1) != NOISE_VERSION:
        raise ValueError(
            f"profile: save must be a file with noise of version {NOISE_VERSION}, got {path} with "
            f"version {known.get('noise', 1)}, of an earlier fastsample; remove it to begin again"
        )
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
    actual = 0 if earlier.trajectories is None else earlier.trajectories.count
    if actual != expected:
        raise ValueError(
            f"profile: trajectories must be as in {path}, which has {actual} for its "
            f"{earlier.count} samples, got {trajectories}"
        )
    return replace(total, origin=earlier.origin)


def save_profile(profile: Profile, path: Path) -> None:
    """Save a profile, or raise ValueError if the path cannot be written."""
    try:
        profile.save(path)
    except OSError as error:
        raise ValueError(f"profile: save must be writable, got {path} ({error})") from None
