"""Reads the conventions of a network from the diffusers scheduler that it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.plans.rows import Prediction
from fastsample.samplers.compile import Last
from fastsample.schedules.schedule import NoiseSchedule

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
# Rounding in float32 changes a product of a thousand factors by a relative 1e-4 at most.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Conventions:
    """What a scheduler of diffusers tells of the network that it steps.

    Attributes:
        schedule: the noise levels that the network was trained with, in float64.
        prediction: the quantity that the network predicts.
        clip: bound on |x0|, or None.
        threshold: (quantile, largest bound) of dynamic thresholding, or None.
        last: the level that the last step lands on: "data", or "first", the trained step of the
            least noise.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    clip: float | None
    threshold: tuple[float, float] | None
    last: Last

    @property
    def is_flow(self) -> bool:
        """Whether the network is a flow-matching model, with ``x_t = (1 - t) x0 + t eps``."""
        return self.schedule.kind == "flow"


def conventions(function: str, scheduler: Any) -> Conventions:
    """Return the conventions of a scheduler's network.

    Args:
        function: the caller's name, for messages.
        scheduler: a scheduler of diffusers, such as ``pipe.scheduler``.

    Raises:
        TypeError: no scheduler.
        ValueError: a scheduler of a kind of model that this package does not know.
    """
    config = getattr(scheduler, "config", None)
    is_class = isinstance(scheduler, type)
    if is_class or config is None or not hasattr(scheduler, "set_timesteps"):
        raise TypeError(
            f"{function}: scheduler must be a scheduler of diffusers, such as pipe.scheduler, got "
            + (f"the class {scheduler.__name__}" if is_class else type(scheduler).__name__)
        )
    scheduler = getattr(scheduler, "replaced_scheduler", scheduler)  # of a FastSampleScheduler
    config = scheduler.config
    prediction = prediction_of(function, scheduler)
    schedule = schedule_of(function, scheduler)
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    threshold = None
    if config.get("thresholding"):
        threshold = (float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"]))
        clip = 1.0  # Data lie in [-1, 1], to which dynamic thresholding scales x0 back.
    stops = config.get("set_alpha_to_one") is False or (
        config.get("final_sigmas_type") == "sigma_min" and schedule.kind != "flow"
    )
    return Conventions(schedule, prediction, clip, threshold, "first" if stops else "data")


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler belongs to a flow-matching model."""
    name = type(scheduler).__name__
    return name.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def prediction_of(function: str, scheduler: Any) -> Prediction:
    """Return what the network predicts.

    Raises:
        ValueError: a prediction type that this package does not know.
    """
    if is_flow(scheduler):
        return "flow"
    name = scheduler.config.get("prediction_type", "epsilon")
    if name not in _PREDICTIONS:
        raise ValueError(
            f"{function}: prediction_type must be one of {list(_PREDICTIONS)}, got {name!r}"
        )
    return _PREDICTIONS[name]


def schedule_of(function: str, scheduler: Any) -> NoiseSchedule:
    """Return the noise schedule in float64.

    diffusers multiplies alphas in float32, which underflows for steep betas. The schedule is
    computed from the config instead; where the scheduler's `alphas_cumprod` shows that it does more
    than the config says, its own values are taken.

    Raises:
        ValueError: a scheduler without betas that is none of a flow-matching model.
    """
    if scheduler.config.get("invert_sigmas"):
        raise ValueError(
            f"{function}: invert_sigmas must be False, got True; a network such as Mochi's, whose "
            "time runs backwards, is not known here"
        )
    if is_flow(scheduler):
        return NoiseSchedule.flow()
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None or getattr(scheduler, "betas", None) is None:
        raise ValueError(
            f"{function}: scheduler must have betas or be one of flow matching, got "
            f"{type(scheduler).__name__}"
        )
    values: FloatArray = own.detach().cpu().double().numpy()
    schedule = _named_schedule(scheduler.config)
    alpha_bar = None if schedule is None else schedule.alpha_bar(np.arange(1.0, schedule.T + 1.0))
    if schedule is not None and alpha_bar is not None:
        if _agrees(alpha_bar, values):
            return schedule
        alpha_bar = _rescaled(alpha_bar, scheduler.config)
        if alpha_bar[-1] == 0.0:
            alpha_bar[-1] = values[-1]  # Several schedulers replace zero by 2^-24.
        if _agrees(alpha_bar, values):
            values = alpha_bar
    # Where 2^-24 is above the levels before it, these are raised: schedules must fall.
    lowest = values[-1] * (1.0 + 1e-6 * np.arange(len(values) - 1, -1, -1))
    return NoiseSchedule.from_alpha_bar(np.maximum(values, lowest))


def _named_schedule(config: Any) -> NoiseSchedule | None:
    """Return the schedule of the config's betas; None for a rule that is not known here."""
    if config.get("trained_betas") is not None:
        return NoiseSchedule.from_betas(np.asarray(config["trained_betas"], np.float64))
    name, steps = config.get("beta_schedule"), config["num_train_timesteps"]
    if name == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(steps)
    start, end = config.get("beta_start"), config.get("beta_end")
    if name is None or start is None or end is None:
        return None
    if name == "linear":
        return NoiseSchedule.linear(steps, start, end)
    if name == "scaled_linear":
        return NoiseSchedule.scaled_linear(steps, start, end)
    if name == "sigmoid":
        rise = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps)))
        return NoiseSchedule.from_betas(start + (end - start) * rise)
    return None


def _rescaled(alpha_bar: FloatArray, config: Any) -> FloatArray:
    """Return alpha_bar after CogVideoX's shift of the SNR and the rescaling to zero terminal SNR.

    The rescaling is algorithm 1 of Lin et al. 2023 (arXiv:2305.08891).
    """
    shift = config.get("snr_shift_scale")
    if shift is not None:
        alpha_bar = alpha_bar / (shift + (1.0 - shift) * alpha_bar)
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(alpha_bar)
        alpha_bar = np.square((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1])))
    return np.array(alpha_bar)


def _agrees(alpha_bar: FloatArray, values: FloatArray) -> bool:
    """Return whether levels agree with a scheduler's float32 levels, as far as those can tell."""
    if alpha_bar.shape != values.shape:
        return False
    tiny = 1e-30  # float32 loses digits below
    return bool(np.allclose(alpha_bar, values, rtol=_ROUNDING, atol=tiny))
