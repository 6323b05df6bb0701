"""Translates the schedulers of diffusers into this package's samplers, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_REMEDY = 'pass method="fastsample" or another method, which runs with this scheduler\'s network'


@dataclass(frozen=True)
class Translation:
    """The sampler that computes what a scheduler of diffusers computes.

    Attributes:
        method: its name in `fastsample.samplers.registry`.
        knobs: its keyword arguments.
        by_index: whether the scheduler takes levels from whole timesteps, not from sigmas.
        clips: whether the scheduler's step applies the clipping that its config asks for.
    """

    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    by_index: bool = False
    clips: bool = True


def translate(function: str, source: Any) -> Translation:
    """Return the sampler of a scheduler.

    Raises:
        ValueError: a scheduler, or a setting of one, that this package has no sampler for.
    """
    name = type(source).__name__
    if name not in _TRANSLATIONS:
        raise ValueError(
            f'{function}: method must not be "auto" with {name}, which has no counterpart among '
            f"{sorted(_TRANSLATIONS)}; {_REMEDY}"
        )
    return _TRANSLATIONS[name](function, source.config)


def _require(function: str, config: Any, name: str, *accepted: Any) -> None:
    """Raise ValueError unless a setting has one of the values that this package knows."""
    value = config.get(name, accepted[0])
    if value not in accepted:
        shown = " or ".join(map(repr, accepted))
        raise ValueError(f"{function}: {name} must be {shown}, got {value!r}; {_REMEDY}")


def _ddim(function: str, config: Any) -> Translation:
    # diffusers keeps the network's own epsilon where x0 is clipped.
    return Translation("ddim", {"rederive": False}, by_index=True)


def _ddim_cogvideox(function: str, config: Any) -> Translation:
    return Translation("ddim", {"rederive": True}, by_index=True, clips=False)


def _ddpm(function: str, config: Any) -> Translation:
    kinds = {"small": "small", "large": "large", "learned_range": "learned_range"}
    name = str(config["variance_type"]).removeprefix("fixed_").removesuffix("_log")
    if name not in kinds:
        raise ValueError(
            f"{function}: variance_type must be fixed_small, fixed_large or learned_range, got "
            f"{config['variance_type']!r}; {_REMEDY}"
        )
    return Translation("ancestral", {"variance": kinds[name]}, by_index=True)


def _dpm(function: str, config: Any) -> Translation:
    _require(function, config, "algorithm_type", "dpmsolver++", "sde-dpmsolver++")
    _require(function, config, "solver_type", "midpoint")
    order = config["solver_order"]
    if config["algorithm_type"] == "sde-dpmsolver++":
        _require(function, config, "solver_order", 2, 1)
        knobs: dict[str, Any] = {"order": order, "stochastic": True}
    else:
        knobs = {"order": order}
    if config["final_sigmas_type"] == "sigma_min":
        _require(function, config, "euler_at_final", False)
    return Translation("dpm++", {**knobs, "lower_order_final": config["lower_order_final"]})


def _unipc(function: str, config: Any) -> Translation:
    _require(function, config, "solver_order", 2, 1)
    _require(function, config, "solver_type", "bh2")
    _require(function, config, "predict_x0", True)
    _require(function, config, "lower_order_final", True)
    _require(function, config, "disable_corrector", [])
    _require(function, config, "solver_p", None)
    return Translation("unipc", {"order": config["solver_order"]})


def _euler(function: str, config: Any) -> Translation:
    # The continuous times of Stable Video Diffusion are those of another schedule.
    _require(function, config, "timestep_type", "discrete")
    return Translation("ddim", {"rederive": True})


def _euler_ancestral(function: str, config: Any) -> Translation:
    return Translation("ddim", {"eta": 1.0, "rederive": True})


def _flow_euler(function: str, config: Any) -> Translation:
    return Translation("shortcut" if config.get("stochastic_sampling") else "ddim")


_TRANSLATIONS: dict[str, Callable[[str, Any], Translation]] = {
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "CogVideoXDDIMScheduler": _ddim_cogvideox,
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "DPMSolverMultistepScheduler": _dpm,
    "UniPCMultistepScheduler": _unipc,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
}
