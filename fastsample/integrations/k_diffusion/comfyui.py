"""Reads what the models of k-diffusion, ComfyUI and Forge tell about their samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.sigmas import Convention
from fastsample.integrations.k_diffusion.levels import parts_of, stated


def model_sampling(model: Any) -> Any:
    """Return what ComfyUI's models hold as `model_sampling`, Forge's as `predictor`; or None."""
    for part in parts_of(model):
        for name in ("model_sampling", "predictor"):
            held = getattr(part, name, None)
            if held is not None:
                return held
    return None


def is_const(sampling: Any) -> bool:
    """Return whether a `model_sampling` is that of a flow model.

    In ComfyUI it is of the class `CONST` then, and in Forge its `prediction_type` is "const".
    """
    if getattr(sampling, "prediction_type", None) == "const":
        return True
    return any(base.__name__ == "CONST" for base in type(sampling).__mro__)


def noise_scale(model: Any) -> float:
    """Return the deviation of the noise of a flow model of ComfyUI, which is 1 for most."""
    return float(getattr(model_sampling(model), "noise_scale", 1.0))


def in_range(function: str, model: Any, levels: FloatArray, convention: Convention) -> FloatArray:
    """Return falling noise levels, after checking them against the largest one that there is.

    ComfyUI and Forge let their users begin above the range of a model, and clamp the timestep.
    Therefore their models have no largest level here.

    Raises:
        ValueError: a level above 1 for flow, or above what a model of k-diffusion states.
    """
    flow = convention == "flow"
    if flow:
        top = 1.0
    elif model_sampling(model) is not None:
        return levels
    else:
        top = stated(model, "sigma_max") or np.inf
    # Lists are float32, and a model's table may be computed otherwise than the list.
    if levels[0] > top * (1.0 + 1e-4):
        rule = "1 for a flow model" if flow else f"the model's sigma_max = {top:g}"
        raise ValueError(f"{function}: sigmas must be at most {rule}, got {levels[0]:g}")
    return np.minimum(levels, 1.0) if flow else levels
