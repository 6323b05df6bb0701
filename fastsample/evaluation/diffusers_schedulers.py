"""Runs the schedulers of diffusers on this package's models; diffusers is optional."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.schedules.schedule import NoiseSchedule

TIMES: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
"""Maps the name of a timestep spacing to the arguments of diffusers' schedulers that choose it."""

_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_STOCHASTIC_DPM = {"algorithm_type": "sde-dpmsolver++"}


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class DiffusersSampler:
    """Makes a scheduler of diffusers with fixed settings, and samples with it.

    Attributes:
        family: the solver that it is a setting of, such as "UniPC"; one line of a plot.
        scheduler: name of the scheduler's class.
        options: arguments of the scheduler, besides those that follow from the model.
        grid: name of its timestep spacing, a key of `TIMES`.
        clips: whether it clips x0 to the model's clip range, if the model has one.
    """

    family: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=_no_options, hash=False)
    grid: str = "linspace"
    clips: bool = True

    @property
    def label(self) -> str:
        """Return the scheduler's call as text, without the options that choose the timesteps."""
        knobs = {k: v for k, v in self.options.items() if not _is_grid(k)}
        return call_text(self.scheduler, knobs) + ("" if self.clips else ", no clipping")

    @property
    def short_label(self) -> str:
        """Return the label without the words "Multistep" and "Scheduler"."""
        return self.label.replace("Multistep", "").replace("Scheduler", "")

    @property
    def is_stochastic(self) -> bool:
        """Return whether the scheduler draws noise in its steps."""
        return self.scheduler == "DDPMScheduler" or _STOCHASTIC_DPM.items() <= self.options.items()

    def make(self, denoiser: Denoiser) -> Any:
        """Make the scheduler with the model's betas, prediction type and clip range.

        Raises:
            ValueError: diffusers has no such scheduler for the model.
            ImportError: diffusers, or a package that this timestep spacing needs, is not installed.
        """
        import diffusers

        reason = reason_unsupported(denoiser)
        if reason is not None:
            raise ValueError(f"DiffusersSampler: denoiser must {reason}")
        options = {
            "trained_betas": _betas(denoiser.schedule),
            "num_train_timesteps": denoiser.schedule.num_steps,
            "prediction_type": _PREDICTIONS[denoiser.prediction],
            **self.options,
        }
        clips = self.clips and denoiser.clip is not None
        if clips and isinstance(denoiser.clip, tuple):
            raise ValueError(f"DiffusersSampler: clip must be a bound on |x0|, got {denoiser.clip}")
        if self.scheduler in ("DDIMScheduler", "DDPMScheduler"):
            options |= {"clip_sample": clips, "clip_sample_range": denoiser.clip or 1.0}
        elif clips:
            # With sample_max_value = 1 the dynamic threshold is always 1, so that x0 is clipped to
            # [-1, 1].
            if denoiser.clip != 1.0:
                raise ValueError(f"DiffusersSampler: clip must be 1, got {denoiser.clip}")
            options |= {"thresholding": True, "sample_max_value": 1.0}
        return getattr(diffusers, self.scheduler)(**options)

    def run(
        self,
        denoiser: Denoiser,
        steps: int,
        start: Tensor,
        *,
        cond: Conditions | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples `(B, *shape)` with the same loop as in diffusers' pipelines.

        Args:
            denoiser: the model.
            steps: argument of the scheduler's `set_timesteps`.
            start: starting noise `(B, *shape)`.
            cond: keyword arguments of the network for these samples.
            generator: source of a stochastic scheduler's noise.

        Raises:
            ValueError: diffusers has no such scheduler for the model.
            ImportError: diffusers, or a package that this timestep spacing needs, is not installed.
        """
        with _without_numpy_warnings():
            scheduler = self.make(denoiser)
            scheduler.set_timesteps(steps, device=start.device)
        if hasattr(scheduler, "set_begin_index"):
            # Otherwise schedulers search for the first timestep, and start late if it occurs twice.
            scheduler.set_begin_index(0)
        noise_source = {"generator": generator} if self.is_stochastic else {}
        uses_variance = self.options.get("variance_type") == "learned_range"
        channels = start.shape[1]
        # A timestep of diffusers is this package's time minus 1.
        times = scheduler.timesteps.cpu().numpy().astype(np.float64) + 1.0
        model = AtTimes(denoiser, times, function="DiffusersSampler")
        conditions = cond or Conditions("DiffusersSampler", batch=len(start), device=start.device)
        x = start
        with torch.inference_mode():
            for k, t in enumerate(scheduler.timesteps):
                output, _ = model.output(x, k, conditions)
                output = output if uses_variance else output[:, :channels]
                with _without_numpy_warnings():
                    x = _step(scheduler, output, t, x, noise_source)
        return x


def _step(
    scheduler: Any, output: Tensor, t: Tensor, x: Tensor, noise_source: dict[str, Any]
) -> Tensor:
    """Return the sample at the scheduler's next timestep, shaped as `x`."""
    if x.dim() > 2:
        return scheduler.step(output, t, x, **noise_source).prev_sample
    # The thresholding of diffusers fails for samples with one axis.
    return scheduler.step(output[..., None], t, x[..., None], **noise_source).prev_sample[..., 0]


@contextmanager
def _without_numpy_warnings() -> Generator[None, None, None]:
    """Silence deprecation warnings: diffusers calls NumPy in ways that new versions deprecate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def reason_unsupported(denoiser: Denoiser) -> str | None:
    """Return why diffusers cannot run the model; None if it can.

    The text continues a sentence that ends in "the model must".
    """
    if denoiser.prediction not in _PREDICTIONS:
        return f"predict one of {list(_PREDICTIONS)} for diffusers, got {denoiser.prediction!r}"
    if denoiser.schedule.num_steps is None:
        return f"have a schedule of whole steps for diffusers, got {denoiser.schedule!r}"
    return None


def is_installed() -> bool:
    """Return whether diffusers is installed, without importing it."""
    return importlib.util.find_spec("diffusers") is not None


def deterministic_samplers() -> list[DiffusersSampler]:
    """Return every deterministic diffusers scheduler with `trained_betas`, in each spacing."""
    dpm: Sequence[str] = ("linspace", "trailing", "karras", "lu", "exponential", "beta")
    most = ("linspace", "trailing", "karras", "exponential", "beta")
    return crossed(
        [
            ("DDIM", "DDIMScheduler", {}, ("leading", "trailing", "linspace")),
            ("DPM-Solver++ 2M", _DPM, {}, dpm),
            ("DPM-Solver++ 3M", _DPM, {"solver_order": 3}, dpm),
            ("UniPC", _UNIPC, {}, most),
            ("UniPC", _UNIPC, {"solver_order": 3}, most),
            ("DEIS", "DEISMultistepScheduler", {}, most),
        ]
    )


def unclipped_samplers() -> list[DiffusersSampler]:
    """Return DPM-Solver++ 2M and UniPC with their default settings, which do not clip x0."""
    return [
        DiffusersSampler("DPM-Solver++ 2M", _DPM, TIMES["linspace"], "linspace", clips=False),
        DiffusersSampler("UniPC", _UNIPC, TIMES["linspace"], "linspace", clips=False),
    ]


def stochastic_samplers(*, learned: bool = False) -> list[DiffusersSampler]:
    """Return the schedulers of diffusers that draw noise in every step.

    Args:
        learned: include those that use a network's learned variance.
    """
    spaced = ("leading", "trailing", "linspace")
    entries: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("SDE 2M", _DPM, _STOCHASTIC_DPM, ("linspace", "karras", "lu")),
        ("DDPM", "DDPMScheduler", {}, spaced),
    ]
    if learned:
        entries.append(("DDPM", "DDPMScheduler", {"variance_type": "learned_range"}, spaced))
    return crossed(entries)


def crossed(
    entries: Sequence[tuple[str, str, dict[str, Any], Sequence[str]]],
) -> list[DiffusersSampler]:
    """Return one sampler for each timestep spacing named in each entry.

    An entry is (family, scheduler, options, names of spacings).
    """
    return [
        DiffusersSampler(family, scheduler, {**options, **TIMES[grid]}, grid)
        for family, scheduler, options, names in entries
        for grid in names
    ]


def call_text(name: str, knobs: Mapping[str, Any]) -> str:
    """Return a call as text, ``name(knob=value, ...)``."""
    values = {k: f'"{v}"' if isinstance(v, str) else str(v) for k, v in knobs.items()}
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{name}({text})" if text else name


@functools.lru_cache(maxsize=4)
def _betas(schedule: NoiseSchedule) -> list[float]:
    levels = schedule.alpha_bar(np.arange(schedule.T + 1))
    return (1.0 - levels[1:] / levels[:-1]).tolist()


def _is_grid(option: str) -> bool:
    return any(option in options for options in TIMES.values())
