"""The class `Denoiser`: a network with its time input, prediction, data range and schedule."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fastsample._support.checks import FloatArray, check_array, check_integer
from fastsample._support.tensors import make_device
from fastsample.denoiser.fit import CarriedProfile, check_profile, plans_by_length
from fastsample.denoiser.outputs import check_output, unpacked
from fastsample.denoiser.threshold import ModelsLast, Threshold, models_last, models_threshold
from fastsample.denoiser.timesteps import TimeInput, check_time_input, timesteps
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction, Variance, check_prediction, clip_bounds
from fastsample.schedules.schedule import NoiseSchedule


class Denoiser:
    """A trained network together with the conventions it was trained under.

    Calling it with project times runs the network once. `fastsample.sample` and every other
    function of the package that needs a model take one. `sample` calls the network in inference
    mode; a network that computes gradients inside must leave it:
    ``with torch.inference_mode(False), torch.enable_grad()``.

    Args:
        model: callable ``(x, t, **cond) -> output``. ``x`` is ``(B, *shape)``, ``t`` is ``(B,)``
            (see `time`); the output is a tensor of the shape of ``x``, or with twice its channels
            when `variance` is "learned_range" (second half: v). An object with `.sample`, a dict
            with "sample" or a tuple is unpacked. ``x`` is overwritten after the call: a network
            that wants to keep it must copy it, and must not write to it.
        schedule: the noise levels it was trained with.
        shape: shape of one sample, without the batch axis.
        prediction: what the output is: "epsilon", "x0", "v" or "flow".
        variance: the reverse variance of ancestral sampling: "small", "large" or "learned_range"
            (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).
        clip: range of the data: a bound on |x0|, a pair (lo, hi), or None.
        time: the timestep that the network takes for project time t: "index" (t - 1, the 0-based
            step, int64 when every time of the run is whole, else float32, never rounded; 0 for
            times below 1), "rescaled" (that index times 1000 / T, float32), "fraction" (t / T),
            "thousandths" (1000 t / T, as flow models of diffusers take), "whole_thousandths" (the
            same truncated to int64, as Wan's scheduler does), "reversed" (1 - t / T), "log_snr"
            (log(alpha^2 / sigma^2)), or a callable from the float64 array of times to an array.
        uncond: keyword arguments that mean "no condition", for guidance; numbers stand for a whole
            batch.
        device: where to run; a module is moved there. None is the device of the model's
            parameters, or the CPU if it has none.
        threshold: dynamic thresholding that the model is sampled with (see `fastsample.sample`), a
            quantile or (quantile, largest bound); needs `clip`. Functions that draw samples use it
            unless they are given a `clip`, a plan or a threshold. A profile, a likelihood and
            `tune` clip x0 without it, and tuned plans are run without it, as they were measured.
        last: where samplers land by default: "data" (t = 0), or "first" (t = 1), as
            ``set_alpha_to_one=False`` of Stable Diffusion means. `tune` and its plans, and the
            chains of `FidelityLoss`, end at data, and likelihoods do not depend on it.

    Raises:
        TypeError: a model that cannot be called, or an argument of the wrong type.
        ValueError: an unknown name or an impossible shape.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        schedule: NoiseSchedule,
        shape: Sequence[int],
        *,
        prediction: Prediction = "epsilon",
        variance: Variance = "small",
        clip: Clip = None,
        time: TimeInput = "index",
        uncond: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        threshold: Threshold | None = None,
        last: ModelsLast = "data",
    ) -> None:
        if not callable(model):
            raise TypeError(f"Denoiser: model must be callable, got {type(model).__name__}")
        if not isinstance(schedule, NoiseSchedule):  # pyright: ignore[reportUnnecessaryIsInstance]
            shown = " ".join(repr(schedule).split())[:60]  # arrays have several lines
            raise TypeError(
                f"Denoiser: schedule must be a NoiseSchedule, got {shown}"
                f"{_schedule_remedy(schedule)}"
            )
        check_prediction("Denoiser", prediction)
        clip_bounds("Denoiser", clip)
        if variance not in get_args(Variance):
            raise ValueError(
                f"Denoiser: variance must be one of {list(get_args(Variance))}, got {variance!r}"
            )
        check_time_input(schedule, time)
        self.model = model
        self.schedule = schedule
        self.shape = checked_shape(shape)
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.clip: Clip = clip
        self.time: TimeInput = time
        self.threshold = models_threshold("Denoiser", threshold, clip)
        self.last = models_last("Denoiser", schedule, last)
        self.uncond = None if uncond is None else _checked_uncond(uncond)
        self.profile: Any = None
        self.plans: dict[int, Plan] = {}
        self._device = make_device("Denoiser", device)
        if self._device is not None and isinstance(model, nn.Module):
            model.to(self._device)

    def with_profile(self, profile: CarriedProfile | None) -> Denoiser:
        """Return the same model with a profile, from which ``grid="auto"`` takes its times.

        Args:
            profile: the `fastsample.Profile` of this model; None removes it.

        Raises:
            ValueError: a profile of another schedule, shape or prediction.
        """
        other = copy.copy(self)
        other.profile = None if profile is None else check_profile(self, profile)
        return other

    def with_plans(self, plans: Mapping[int, Plan] | Iterable[Plan]) -> Denoiser:
        """Return the same model with tuned plans, which ``fs.sample(model, steps)`` then uses.

        Args:
            plans: plans of different lengths (`fastsample.tune`), or a mapping from their lengths
                (numbers of network calls) to the plans.

        Raises:
            ValueError: plans of another schedule or prediction, or two of one length.
        """
        other = copy.copy(self)
        other.plans = plans_by_length(self, plans)
        return other

    @property
    def device(self) -> torch.device:
        """The device that the network runs on."""
        tensor = _first_tensor(self.model)
        if tensor is not None:
            return tensor.device  # still right after the module was moved
        return self._device or torch.device("cpu")

    def check_device(self, function: str, device: torch.device) -> None:
        """Raise ValueError for a device other than the module's; a plain callable takes any."""
        if _first_tensor(self.model) is not None and device != self.device:
            raise ValueError(
                f"{function}: device must be the model's {self.device}, got {device}; "
                "move the model first"
            )

    def device_and_dtype(
        self, function: str, device: torch.device | None
    ) -> tuple[torch.device, torch.dtype]:
        """Return the device of samples, by default the model's, and the dtype that they have there.

        Raises:
            ValueError: a device other than the module's.
        """
        tensor = _first_tensor(self.model)
        if tensor is None:
            return device or self.device, torch.float32
        if device is not None and device != tensor.device:
            self.check_device(function, device)
        return tensor.device, tensor.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's first floating parameter; float32 when it has none."""
        tensor = _first_tensor(self.model)
        return torch.float32 if tensor is None else tensor.dtype

    def clip_for(self, clip: Clip | Literal["auto"]) -> Clip:
        """Return the range that x0 is clamped to: the model's for "auto", else `clip` itself."""
        return self.clip if isinstance(clip, str) and clip == "auto" else clip

    def input_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that samples of a given dtype are cast to before they enter the network.

        A module whose floating parameters have the samples' dtype among theirs takes them as they
        are, since networks may keep some layers in another precision. Other modules are given the
        dtype of their first parameter; a plain callable takes any.
        """
        first = _first_tensor(self.model)
        if first is None or first.dtype == dtype:
            return dtype
        parameters: Any = self.model.parameters()  # type: ignore[attr-defined]
        return dtype if any(p.dtype == dtype for p in parameters) else first.dtype

    def network_times(self, times: FloatArray, device: torch.device | None = None) -> Tensor:
        """Return the timesteps that the network takes at times (0 data, T noise), in their shape.

        int64 when the network takes indices and all times are whole, else float32 (or the integers
        of a callable `time`), on the network's device.
        """
        return timesteps(self.schedule, self.time, times).to(device or self.device)

    def at_time(
        self,
        x: Tensor,
        t: float | Sequence[float] | FloatArray,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Return the network's output for noisy samples at times t (0 is data, T is noise).

        Args:
            x: noisy samples `(B, *shape)`.
            t: times in (0, T], a number or `(B,)`; T is pure noise. For a network that takes a time
                per token or frame, as in diffusion forcing (Chen et al. 2024, arXiv:2407.01392),
                `(B, N)` or any other shape that begins with B: its timesteps have this shape.
            cond: keyword arguments of the network, as it takes them.

        Returns:
            `(B, *shape)`, or twice the channels with a learned variance, in the dtype of `x`.

        Raises:
            TypeError: an output that is no floating tensor.
            ValueError: another shape, a time outside (0, T], or an output that does not fit `x`.
        """
        if x.dim() < 2 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"Denoiser: x must have shape (B, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}"
            )
        times = check_array("Denoiser", "t", t)
        if times.ndim and times.shape[0] != x.shape[0]:
            raise ValueError(
                f"Denoiser: t must be one time or one per sample ({x.shape[0]},), or of a shape "
                f"that begins so, got shape {times.shape}"
            )
        if np.any(times <= 0) or np.any(times > self.schedule.T):
            raise ValueError(
                f"Denoiser: t must be in (0, {self.schedule.T:g}], got {times.min():g} to "
                f"{times.max():g}; a network has no index for clean data"
            )
        if not times.ndim:
            times = np.broadcast_to(times, (x.shape[0],))
        return self.at_timestep(x, self.network_times(times, x.device), cond or {})

    __call__ = at_time

    def at_timestep(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Mapping[str, Any],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return the network's checked output at timesteps in the network's own convention.

        Args:
            x: noisy samples `(B, *shape)`; cast for the network, and its output back.
            timestep: `(B,)`, see `network_times`, or of another shape that the network takes.
            cond: keyword arguments of the network, as it takes them.
            dtype: the network's `input_dtype`, for callers that ask for it once; None asks here.

        Returns:
            `(B, *shape)`, or twice the channels with a learned variance, in the dtype of `x`.

        Raises:
            TypeError: an output that is no floating tensor.
            ValueError: an output of another shape or on another device.
        """
        dtype = dtype or self.input_dtype(x.dtype)
        network_input = x if dtype == x.dtype else x.to(dtype)
        output = unpacked(self.model(network_input, timestep, **cond))
        check_output(x, output, learned=self.variance == "learned_range")
        # A network in another dtype or under autocast returns that dtype.
        return output if output.dtype == x.dtype else output.to(x.dtype)

    def __repr__(self) -> str:
        name = getattr(type(self.model), "__name__", "model")
        return (
            f"Denoiser({name}, {self.schedule!r}, shape={self.shape}, "
            f"prediction={self.prediction!r}, variance={self.variance!r}, clip={self.clip})"
        )


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample as a tuple; raise unless all sizes are at least 1."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"Denoiser: shape must be a sequence of sizes, got {shape!r}") from None
    sizes = tuple(check_integer("Denoiser", "shape", size, 1) for size in sizes)
    if not sizes:
        raise ValueError("Denoiser: shape must have at least one dimension, got ()")
    return sizes


def _schedule_remedy(schedule: Any) -> str:
    """Return what a message about a wrong schedule ends with."""
    if isinstance(schedule, (str, type(None))):
        return "; such as NoiseSchedule.linear(1000) or NoiseSchedule.cosine(1000)"
    if isinstance(schedule, (Tensor, np.ndarray, Sequence)):
        return "; of betas pass NoiseSchedule.from_betas(betas)"
    if hasattr(schedule, "betas"):
        return "; of a scheduler pass NoiseSchedule.from_betas(scheduler.betas)"
    return ""


def _checked_uncond(uncond: Any) -> dict[str, Any]:
    """Return a copy of the keyword arguments; TypeError for anything but a mapping."""
    if not isinstance(uncond, Mapping):
        raise TypeError(f"Denoiser: uncond must be a mapping, got {uncond!r}")
    return dict(cast(Mapping[str, Any], uncond))


def _first_tensor(model: Any) -> Tensor | None:
    """Return a module's first floating parameter or buffer, else None."""
    if not isinstance(model, nn.Module):
        return None
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)
