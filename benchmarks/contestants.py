"""Who takes part in the quality benchmark: a method of ours on a grid, a scheduler of diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from benchmarks.models import Model, generator
from fastsample.methods import GRIDS, METHODS, noisiest
from fastsample.stored import stored_grid

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


@dataclass(frozen=True)
class Ours:
    """A method of this package on a grid.

    Attributes:
        family: what it is compared as, one line of the plot.
        method: name in `fastsample.methods.METHODS`.
        knobs: its keyword arguments.
        grid: name of the grid, or "random"; for a method that chooses its times, what to call them.
    """

    family: str
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    grid: str = "uniform"
    peer = False

    @property
    def label(self) -> str:
        """The method with its knobs."""
        return _call(self.method, self.knobs)

    def plan(self, model: Model, steps: int, seed: int) -> fs.Plan:
        """The table of a run; ValueError where there is none of so many steps."""
        schedule = model.denoiser.schedule
        method = METHODS[self.method]
        chosen: int | fs.Grid = steps
        if self.grid == "random":
            chosen = fs.grids.random(noisiest(schedule), steps, seed)
        elif self.grid == "auto":
            best = stored_grid(model.denoiser, steps)
            if best is None:
                raise ValueError(f"contestants: the profile must have a grid of {steps} steps")
            chosen = best
        elif not method.chooses_times:
            chosen = GRIDS[self.grid](schedule, steps)
        with warnings.catch_warnings():  # short chains that start below T do so on purpose
            warnings.simplefilter("ignore", UserWarning)
            return method.make(
                schedule,
                chosen,
                clip=model.denoiser.clip,
                prediction=model.denoiser.prediction,
                **self.knobs,
            )

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Equal for runs that give equal samples, up to rounding."""
        plan = self.plan(model, steps, seed)
        return np.round(plan.nodes, 6).tobytes(), np.round(plan.rows, 9).tobytes()

    def deterministic(self, model: Model, steps: int) -> bool:
        """Whether the samples depend on the starting noise alone."""
        return not self.plan(model, steps, 0).is_stochastic

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Samples from the starting noise."""
        plan = self.plan(model, steps, seed)
        return fs.sample(model.denoiser, plan, start=start, seed=seed)


@dataclass(frozen=True)
class Tuned:
    """The plan that `fastsample.tune` found for the model and the number of steps.

    Its noise is none of the benchmark's.
    """

    family: str = "tuned"
    method: str = "tuned"
    grid: str = "its own"
    peer = False

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return "fs.tune"

    def plan(self, model: Model, steps: int) -> fs.Plan:
        """The model's plan; ValueError where there is none of so many steps."""
        found = model.tuned(steps)
        if found is None:
            raise ValueError(f"contestants: model must have a plan of {steps} steps, got none")
        return found

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Equal for runs that give equal samples."""
        return self.plan(model, steps)

    def deterministic(self, model: Model, steps: int) -> bool:
        """Whether the samples depend on the starting noise alone."""
        return True

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Samples from the starting noise."""
        return fs.sample(model.denoiser, self.plan(model, steps), start=start)


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers with its settings.

    Attributes:
        family: what it is compared as, one line of the plot.
        scheduler: name of the class.
        options: arguments of its constructor, beside the trained betas.
        grid: what its times are called.
        clips: it holds x0 in the model's clip range, if there is one.
    """

    family: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    grid: str = "linspace"
    clips: bool = True
    peer = True

    @property
    def label(self) -> str:
        """The scheduler with its options, but for those that make the grid."""
        knobs = {k: v for k, v in self.options.items() if not _is_grid(k)}
        return _call(self.scheduler, knobs) + ("" if self.clips else ", no clipping")

    def make(self, model: Model) -> Any:
        """The scheduler, for the model's betas and clip range."""
        import diffusers

        schedule = model.denoiser.schedule
        levels = schedule.alpha_bar(np.arange(schedule.T + 1))
        options = {"trained_betas": (1.0 - levels[1:] / levels[:-1]).tolist(), **self.options}
        clips = self.clips and model.denoiser.clip is not None
        if self.scheduler in ("DDIMScheduler", "DDPMScheduler"):
            options |= {"clip_sample": clips, "clip_sample_range": model.denoiser.clip or 1.0}
        elif clips:
            # With sample_max_value = 1 the dynamic threshold is always 1: a clamp to [-1, 1].
            if model.denoiser.clip != 1.0:
                raise ValueError(f"Peer: clip must be 1, got {model.denoiser.clip}")
            options |= {"thresholding": True, "sample_max_value": 1.0}
        return getattr(diffusers, self.scheduler)(**options)

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Equal for runs that give equal samples."""
        return self, steps

    def deterministic(self, model: Model, steps: int) -> bool:
        """Whether the samples depend on the starting noise alone."""
        return self.scheduler != "DDPMScheduler" and self.family != "SDE 2M"

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Samples from the starting noise, by the loop of diffusers' pipelines."""
        scheduler = self.make(model)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else a first time that repeats is searched for wrongly
        takes_noise = not self.deterministic(model, steps)
        given = {"generator": generator("noise", seed)} if takes_noise else {}
        learned = self.options.get("variance_type") == "learned_range"
        channels = start.shape[1]
        x = start
        with torch.inference_mode():
            for t in scheduler.timesteps:
                output = model.denoiser.call(x, t.expand(len(x)), {})
                output = output if learned else output[:, :channels]
                x = scheduler.step(output, t, x, **given).prev_sample
        return x


Contestant = Ours | Tuned | Peer


def _is_grid(option: str) -> bool:
    return any(option in options for options in TIMES.values())


def _call(name: str, knobs: dict[str, Any]) -> str:
    text = ", ".join(f"{key}={_quoted(value)}" for key, value in knobs.items())
    return f"{name}({text})" if text else name


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
