"""Schedulers of diffusers, run on this package's models for comparison; diffusers is optional."""

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
"""The options of diffusers' schedulers that choose the times, by the name of the grid."""

_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_STOCHASTIC_DPM = {"algorithm_type": "sde-dpmsolver++"}


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class DiffusersSampler:
    """A scheduler of diffusers with its settings.

    Attributes:
        family: the group of samplers that it is compared in, one line of a plot.
        scheduler: name of the scheduler's class.
        options: arguments of the scheduler, besides those that the model decides.
        grid: name of its times.
        clips: whether it clips x0 to the model's clip range, if the model has one.
    """

    family: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=_no_options, hash=False)
    grid: str = "linspace"
    clips: bool = True

    @property
    def label(self) -> str:
        """The scheduler with its options, except those that choose the times."""
        knobs = {k: v for k, v in self.options.items() if not _is_grid(k)}
        return call_text(self.scheduler, knobs) + ("" if self.clips else ", no clipping")

    @property
    def short_label(self) -> str:
        """The label without "Multistep" and "Scheduler"."""
        return self.label.replace("Multistep", "").replace("Scheduler", "")

    @property
    def is_stochastic(self) -> bool:
        """Whether samples depend on more than the starting noise."""
        return self.scheduler == "DDPMScheduler" or _STOCHASTIC_DPM.items() <= self.options.items()

    def make(self, denoiser: Denoiser) -> Any:
        """The scheduler for the model's betas, prediction and clip range.

        Raises:
            ValueError: diffusers has no such scheduler for the model.
            ImportError: diffusers is not installed, or a package that it needs for these times.
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
        """Samples `(B, *shape)` by the loop of diffusers' pipelines.

        Args:
            denoiser: the model.
            steps: argument of the scheduler's `set_timesteps`.
            start: starting noise `(B, *shape)`.
            cond: keyword arguments of the network for these samples.
            generator: source of a stochastic scheduler's noise.

        Raises:
            ValueError: diffusers has no such scheduler for the model.
            ImportError: diffusers is not installed, or a package that it needs for these times.
        """
        with _without_numpy_warnings():
            scheduler = self.make(denoiser)
            scheduler.set_timesteps(steps, device=start.device)
        if hasattr(scheduler, "set_begin_index"):
            # Otherwise schedulers look up the first timestep, and start late if it occurs twice.
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
    """X at the scheduler's next timestep."""
    if x.dim() > 2:
        return scheduler.step(output, t, x, **noise_source).prev_sample
    # The thresholding of diffusers fails for samples with one axis.
    return scheduler.step(output[..., None], t, x[..., None], **noise_source).prev_sample[..., 0]


@contextmanager
def _without_numpy_warnings() -> Generator[None, None, None]:
    """Silences deprecation warnings: diffusers calls NumPy in ways that new versions deprecate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def reason_unsupported(denoiser: Denoiser) -> str | None:
    """What the model must do or have for diffusers, and does not; None if diffusers supports it.

    The text continues a sentence that ends in "must".
    """
    if denoiser.prediction not in _PREDICTIONS:
        return f"predict one of {list(_PREDICTIONS)} for diffusers, got {denoiser.prediction!r}"
    if denoiser.schedule.num_steps is None:
        return f"have a schedule of whole steps for diffusers, got {denoiser.schedule!r}"
    return None


def is_installed() -> bool:
    """Whether diffusers is installed; does not import it."""
    return importlib.util.find_spec("diffusers") is not None


def deterministic_samplers() -> list[DiffusersSampler]:
    """Every deterministic solver of diffusers that takes trained betas, with all its times."""
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
    """Schedulers with their default settings, which do not clip x0."""
    return [
        DiffusersSampler("DPM-Solver++ 2M", _DPM, TIMES["linspace"], "linspace", clips=False),
        DiffusersSampler("UniPC", _UNIPC, TIMES["linspace"], "linspace", clips=False),
    ]


def stochastic_samplers(*, learned: bool = False) -> list[DiffusersSampler]:
    """The solvers of diffusers that draw noise in every step.

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
    """One sampler for each name of times of each entry (family, scheduler, options, names)."""
    return [
        DiffusersSampler(family, scheduler, {**options, **TIMES[grid]}, grid)
        for family, scheduler, options, names in entries
        for grid in names
    ]


def call_text(name: str, knobs: Mapping[str, Any]) -> str:
    """A call as text, ``name(knob=value, ...)``."""
    values = {k: f'"{v}"' if isinstance(v, str) else str(v) for k, v in knobs.items()}
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{name}({text})" if text else name


@functools.lru_cache(maxsize=4)
def _betas(schedule: NoiseSchedule) -> list[float]:
    levels = schedule.alpha_bar(np.arange(schedule.T + 1))
    return (1.0 - levels[1:] / levels[:-1]).tolist()


def _is_grid(option: str) -> bool:
    return any(option in options for options in TIMES.values())
