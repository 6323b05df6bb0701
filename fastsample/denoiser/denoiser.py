"""The model's face: what a network is told, what it answers, and what it was trained for."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fastsample._support.checks import FloatArray, check_array, check_integer
from fastsample._support.tensors import make_device
from fastsample.denoiser.fit import CarriedProfile, checked_plans
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction, Variance, check_prediction, clip_bounds
from fastsample.schedules.schedule import NoiseSchedule

TimeInput: TypeAlias = (
    Literal["index", "rescaled", "fraction", "log_snr"] | Callable[[FloatArray], Any]
)


class Denoiser:
    """A trained network together with the conventions it was trained under.

    Calling it with project times runs the network once. `fastsample.sample` takes one; so does
    everything else here that needs a model. `sample` calls the network in inference mode; one that
    takes gradients inside must leave it: ``with torch.inference_mode(False), torch.enable_grad()``.

    Args:
        model: callable ``(x, t, **cond) -> output``. ``x`` is ``(B, *shape)``, ``t`` is ``(B,)``
            (see `time`); the output is a tensor of the shape of ``x``, or with twice its channels
            when `variance` is "learned_range" (second half: v). An object with `.sample`, a dict
            with "sample" or a tuple is unpacked. ``x`` is overwritten after the call: a network
            that wants to keep it must copy it, and must not write to it.
        schedule: the noise levels it was trained with.
        shape: shape of one sample, without the batch.
        prediction: what the output is: "epsilon", "x0", "v" or "flow".
        variance: the reverse variance ancestral sampling uses: "small", "large" or "learned_range".
        clip: range of the data, a bound on |x0|, a pair (lo, hi), or None.
        time: what the network is told for project time t: "index" (t - 1, the 0-based step, int64
            when every time of the run is whole, else float32, never rounded), "rescaled" ((t - 1)
            1000 / T, float32), "fraction" (t / T), "log_snr" (log(alpha^2 / sigma^2)), or a
            callable from the float64 array of times to an array.
        uncond: keyword arguments that mean "no condition", for guidance; numbers stand for a whole
            batch.
        device: where to run; a module is moved there. None is where the model's parameters are,
            else the CPU.

    Raises:
        TypeError: a model that cannot be called or an argument of the wrong kind.
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
    ) -> None:
        if not callable(model):
            raise TypeError(f"Denoiser: model must be callable, got {type(model).__name__}")
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(f"Denoiser: schedule must be a NoiseSchedule, got {schedule!r}")
        check_prediction("Denoiser", prediction)
        clip_bounds("Denoiser", clip)
        if variance not in get_args(Variance):
            raise ValueError(
                f"Denoiser: variance must be one of {list(get_args(Variance))}, got {variance!r}"
            )
        if not callable(time) and time not in list(_TIME_INPUTS):
            raise ValueError(
                f"Denoiser: time must be one of {list(_TIME_INPUTS)} or a callable, got {time!r}"
            )
        if schedule.num_steps is None and time in ("index", "rescaled"):
            raise ValueError(
                f"Denoiser: time must not be {time!r} for {schedule!r}, which has no step numbers; "
                'pass time="fraction", "log_snr" or a callable'
            )
        self.model = model
        self.schedule = schedule
        self.shape = checked_shape(shape)
        self.prediction: Prediction = prediction
        self.variance: Variance = variance
        self.clip: Clip = clip
        self.time: TimeInput = time
        if uncond is not None and not isinstance(uncond, Mapping):
            raise TypeError(f"Denoiser: uncond must be a mapping, got {uncond!r}")
        self.uncond = None if uncond is None else dict(uncond)
        self.profile: Any = None
        self.plans: dict[int, Plan] = {}
        self._device = make_device("Denoiser", device)
        if self._device is not None and isinstance(model, nn.Module):
            model.to(self._device)

    def with_profile(self, profile: CarriedProfile | None) -> Denoiser:
        """The same model with its profile, from which ``grid="auto"`` takes its times.

        Args:
            profile: the `fastsample.Profile` of this model; None takes it away.

        Raises:
            ValueError: a profile of another schedule, shape or prediction.
        """
        other = copy.copy(self)
        if profile is not None:
            if not hasattr(profile, "check_model"):
                raise TypeError(
                    f"with_profile: profile must be a Profile, got {type(profile).__name__}"
                )
            profile.check_model(self)
        other.profile = profile
        return other

    def with_plans(self, plans: Mapping[int, Plan] | Iterable[Plan]) -> Denoiser:
        """The same model with tuned plans, which ``fs.sample(model, steps)`` then uses.

        Args:
            plans: plans of different lengths (`fastsample.tune`), or a mapping from their lengths.

        Raises:
            ValueError: plans of another schedule or prediction, or two of one length.
        """
        other = copy.copy(self)
        other.plans = checked_plans(self, plans)
        return other

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        tensor = _first_tensor(self.model)
        if tensor is not None:
            return tensor.device  # also after someone moved the module
        return self._device or torch.device("cpu")

    def check_device(self, function: str, device: torch.device) -> None:
        """Refuse a device on which the network is not; a plain callable may be anywhere."""
        if _first_tensor(self.model) is not None and device != self.device:
            raise ValueError(
                f"{function}: device must be the model's {self.device}, got {device}; "
                "move the model first"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the network's parameters; float32 when it has none."""
        tensor = _first_tensor(self.model)
        return torch.float32 if tensor is None else tensor.dtype

    def network_times(self, times: FloatArray, device: torch.device | None = None) -> Tensor:
        """What the network is told at project times ``(K,)``: a tensor ``(K,)`` on its device."""
        device = device or self.device
        times = np.asarray(times, dtype=np.float64)
        if self.time == "index" and np.all(times == np.rint(times)):
            return torch.as_tensor(times.astype(np.int64) - 1, device=device)
        if callable(self.time):
            told = torch.as_tensor(self.time(times))
        else:
            told = torch.as_tensor(_TIME_INPUTS[self.time](times, self.schedule))
        if told.shape != times.shape:
            raise ValueError(
                f"Denoiser: time must give one value per time {times.shape}, "
                f"got {tuple(told.shape)}"
            )
        # On the host, before the upload.
        if told.is_floating_point() and not np.all(np.isfinite(told.detach().cpu().numpy())):
            raise ValueError(
                f"Denoiser: time must give finite values, got {told.tolist()} for times "
                f"{times.tolist()}"
            )
        return told.to(device, torch.float32 if told.is_floating_point() else told.dtype)

    def __call__(
        self,
        x: Tensor,
        t: float | Sequence[float] | FloatArray,
        cond: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The network's output for ``x (B, *shape)`` at project time ``t``, one or `(B,)`."""
        if x.dim() < 2 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"Denoiser: x must have shape (B, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}"
            )
        times = check_array("Denoiser", "t", t)
        if times.shape not in ((), (x.shape[0],)):
            raise ValueError(
                f"Denoiser: t must be one time or one per sample ({x.shape[0]},), "
                f"got shape {times.shape}"
            )
        if np.any(times <= 0) or np.any(times > self.schedule.T):
            raise ValueError(
                f"Denoiser: t must be in (0, {self.schedule.T:g}], got {times.min():g} to "
                f"{times.max():g}; a network has no index for clean data"
            )
        times = np.broadcast_to(times, (x.shape[0],))
        return self.call(x, self.network_times(times, x.device), cond or {})

    def call(self, x: Tensor, told: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """One network call with times as the network wants them ``(B,)``; the output is checked."""
        try:
            output = self.model(x, told, **cond)
        except RuntimeError as error:
            if x.dtype == self.dtype:
                raise
            # Not refused beforehand: mixed-precision networks take another dtype than their first
            # parameter's.
            raise TypeError(
                f"Denoiser: x must be {self.dtype} like the model's parameters, got {x.dtype}; "
                f"the model failed with: {error}"
            ) from error
        if not isinstance(output, Tensor):
            output = _unpacked(output)
        wide = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
        learned = self.variance == "learned_range"
        if output.shape != (wide if learned else x.shape):
            remedy = ""
            if output.shape == wide:
                remedy = '; if its second half is a learned variance, pass variance="learned_range"'
            elif output.shape == x.shape:
                remedy = '; a variance="learned_range" network gives [prediction | v]'
            raise ValueError(
                "Denoiser: the model's output must have shape "
                f"{tuple(wide if learned else x.shape)} for x {tuple(x.shape)}, "
                f"got {tuple(output.shape)}{remedy}"
            )
        if not output.is_floating_point():
            raise TypeError(
                f"Denoiser: the model's output must be a floating tensor, got {output.dtype}"
            )
        if output.device != x.device:
            raise ValueError(
                f"Denoiser: the model's output must be on {x.device}, got {output.device}"
            )
        return output if output.dtype == x.dtype else output.to(x.dtype)  # autocast

    def __repr__(self) -> str:
        name = getattr(type(self.model), "__name__", "model")
        return (
            f"Denoiser({name}, {self.schedule!r}, shape={self.shape}, "
            f"prediction={self.prediction!r}, variance={self.variance!r}, clip={self.clip})"
        )


def _rescaled(times: FloatArray, schedule: NoiseSchedule) -> FloatArray:
    return (times - 1.0) * (1000.0 / schedule.T)


_TIME_INPUTS: dict[str, Callable[[FloatArray, NoiseSchedule], FloatArray]] = {
    "index": lambda times, schedule: times - 1.0,
    "rescaled": _rescaled,
    "fraction": lambda times, schedule: times / schedule.T,
    "log_snr": lambda times, schedule: schedule.log_snr(times),
}


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of one sample: at least one, all positive."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"Denoiser: shape must be a sequence of sizes, got {shape!r}") from None
    sizes = tuple(check_integer("Denoiser", "shape", size, 1) for size in sizes)
    if not sizes:
        raise ValueError("Denoiser: shape must have at least one dimension, got ()")
    return sizes


def _first_tensor(model: Any) -> Tensor | None:
    """A floating parameter or buffer, which tells the model's device and dtype."""
    if not isinstance(model, nn.Module):
        return None
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t for t in tensors if t.is_floating_point()), None)


def _unpacked(output: Any) -> Tensor:
    """The tensor inside a diffusers output, a dict or a tuple."""
    inner = getattr(output, "sample", None)
    if inner is None and isinstance(output, Mapping):
        inner = output.get("sample")
    if inner is None and isinstance(output, (tuple, list)) and output:
        inner = output[0]
    if not isinstance(inner, Tensor):
        raise TypeError(
            f"Denoiser: the model's output must be a tensor, got {type(output).__name__}"
        )
    return inner
