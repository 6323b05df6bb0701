"""Schedulers of diffusers on models of this package, to compare with; diffusers is optional."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
"""The options of diffusers that choose the times, by the names of the grids they make."""

_PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_STOCHASTIC_DPM = {"algorithm_type": "sde-dpmsolver++"}


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers with its settings.

    Attributes:
        family: what it is compared as, one line of a plot.
        scheduler: name of the class.
        options: arguments of its constructor, beside the trained betas and what the model decides.
        grid: what its times are called.
        clips: it holds x0 in the model's clip range, if there is one.
    """

    family: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    grid: str = "linspace"
    clips: bool = True

    @property
    def label(self) -> str:
        """The scheduler with its options, but for those that make the grid."""
        knobs = {k: v for k, v in self.options.items() if not _is_grid(k)}
        return call_text(self.scheduler, knobs) + ("" if self.clips else ", no clipping")

    @property
    def short_label(self) -> str:
        """The label without the words that most schedulers have in their names."""
        return self.label.replace("Multistep", "").replace("Scheduler", "")

    @property
    def is_stochastic(self) -> bool:
        """Whether samples depend on more than the starting noise."""
        return self.scheduler == "DDPMScheduler" or _STOCHASTIC_DPM.items() <= self.options.items()

    def make(self, denoiser: Denoiser) -> Any:
        """The scheduler, for the model's betas, prediction and clip range.

        Raises:
            ValueError: a model that it cannot be made for.
            ImportError: diffusers, or what it needs for these times, is not installed.
        """
        import diffusers

        reason = refusal(denoiser)
        if reason is not None:
            raise ValueError(f"Peer: denoiser must {reason}")
        options = {
            "trained_betas": _betas(denoiser.schedule),
            "num_train_timesteps": denoiser.schedule.num_steps,
            "prediction_type": _PREDICTIONS[denoiser.prediction],
            **self.options,
        }
        clips = self.clips and denoiser.clip is not None
        if clips and isinstance(denoiser.clip, tuple):
            raise ValueError(f"Peer: clip must be a bound on |x0|, got {denoiser.clip}")
        if self.scheduler in ("DDIMScheduler", "DDPMScheduler"):
            options |= {"clip_sample": clips, "clip_sample_range": denoiser.clip or 1.0}
        elif clips:
            # With sample_max_value = 1 the dynamic threshold is always 1: a clamp to [-1, 1].
            if denoiser.clip != 1.0:
                raise ValueError(f"Peer: clip must be 1, got {denoiser.clip}")
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
        """Samples from the starting noise `(B, *shape)`, by the loop of diffusers' pipelines.

        Args:
            denoiser: the model.
            steps: as its `set_timesteps` takes them.
            start: noise `(B, *shape)`.
            cond: keyword arguments of the network for these samples.
            generator: of a stochastic scheduler's noise.
        """
        with _quiet():
            scheduler = self.make(denoiser)
            scheduler.set_timesteps(steps, device=start.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else a first time that repeats is searched for wrongly
        given = {"generator": generator} if self.is_stochastic else {}
        learned = self.options.get("variance_type") == "learned_range"
        channels = start.shape[1]
        # Its times are indices, which are one less than ours.
        times = scheduler.timesteps.cpu().numpy().astype(np.float64) + 1.0
        model = AtTimes(denoiser, times, function="Peer")
        conditions = cond or Conditions("Peer", batch=len(start), device=start.device)
        x = start
        with torch.inference_mode():
            for k, t in enumerate(scheduler.timesteps):
                output, _ = model.output(x, k, conditions)
                output = output if learned else output[:, :channels]
                with _quiet():
                    x = _step(scheduler, output, t, x, given)
        return x


def _step(scheduler: Any, output: Tensor, t: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
    if x.dim() > 2:
        return scheduler.step(output, t, x, **given).prev_sample
    # Its thresholding fails where samples have one dimension.
    return scheduler.step(output[..., None], t, x[..., None], **given).prev_sample[..., 0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what diffusers does in the way of older versions of NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def refusal(denoiser: Denoiser) -> str | None:
    """Why no scheduler runs this model, as what it must be and is; None if they do."""
    if denoiser.prediction not in _PREDICTIONS:
        return f"predict one of {list(_PREDICTIONS)} for diffusers, got {denoiser.prediction!r}"
    if denoiser.schedule.num_steps is None:
        return f"have a schedule of whole steps for diffusers, got {denoiser.schedule!r}"
    return None


def installed() -> bool:
    """Whether diffusers is there; it is not imported."""
    return importlib.util.find_spec("diffusers") is not None


def deterministic_peers() -> list[Peer]:
    """Every deterministic multistep solver of diffusers that takes trained betas, on its times."""
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


def unclipped_peers() -> list[Peer]:
    """Schedulers as they come, without the clipping that they know under another name."""
    return [
        Peer("DPM-Solver++ 2M", _DPM, TIMES["linspace"], "linspace", clips=False),
        Peer("UniPC", _UNIPC, TIMES["linspace"], "linspace", clips=False),
    ]


def stochastic_peers(*, learned: bool = False) -> list[Peer]:
    """Those that draw noise in every step; `learned`: with the network's variance, too."""
    spaced = ("leading", "trailing", "linspace")
    entries: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("SDE 2M", _DPM, _STOCHASTIC_DPM, ("linspace", "karras", "lu")),
        ("DDPM", "DDPMScheduler", {}, spaced),
    ]
    if learned:
        entries.append(("DDPM", "DDPMScheduler", {"variance_type": "learned_range"}, spaced))
    return crossed(entries)


def crossed(entries: Sequence[tuple[str, str, dict[str, Any], Sequence[str]]]) -> list[Peer]:
    """(family, scheduler, options, names of times) as one peer for each of the times."""
    return [
        Peer(family, scheduler, {**options, **TIMES[grid]}, grid)
        for family, scheduler, options, names in entries
        for grid in names
    ]


def call_text(name: str, knobs: Mapping[str, Any]) -> str:
    """``name(knob=value, ...)``."""
    values = {k: f'"{v}"' if isinstance(v, str) else str(v) for k, v in knobs.items()}
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{name}({text})" if text else name


@functools.lru_cache(maxsize=4)
def _betas(schedule: NoiseSchedule) -> list[float]:
    levels = schedule.alpha_bar(np.arange(schedule.T + 1))
    return (1.0 - levels[1:] / levels[:-1]).tolist()


def _is_grid(option: str) -> bool:
    return any(option in options for options in TIMES.values())
