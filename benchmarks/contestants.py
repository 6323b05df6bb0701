"""What the quality benchmark compares: every method x grid here, and the schedulers of diffusers.

Both draw from the same starting noise through the same counted network. Not crossed: FastDPM, which
chooses its own times; on the digits, whose network takes most of the time, the stochastic methods
with all grids (`DIGITS_GRIDS`), and random times with any other method than shortcut, which is
where they come from. `ddim(eta=1)` is `ancestral("small")` and `ddim(sigma_hat=True)` is
`ancestral("large")`, row by row; "trailing" is "uniform" where K divides T. Equal tables are run
once (`Ours.key`), and every name gets the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from benchmarks.models import Model
from fastsample.methods import GRIDS, METHODS, noisiest

ALL_GRIDS = (
    "uniform",
    "quadratic",
    "log_snr",
    "karras",
    "trailing",
    "leading",
    "ddim_quadratic",
    "random",
)
DIGITS_GRIDS = ("uniform", "quadratic", "log_snr", "karras")


@dataclass(frozen=True)
class Ours:
    """A method of this package on a grid.

    Attributes:
        family: what it is compared as, one line of the plot.
        method: name in `fastsample.methods.METHODS`.
        knobs: its keyword arguments.
        grid: name of the grid, "random", or "own" for a method that chooses its times.
    """

    family: str
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    grid: str = "own"
    peer = False

    @property
    def name(self) -> str:
        """A unique name."""
        knobs = ", ".join(f"{k}={v}" for k, v in self.knobs.items())
        return f"{self.method}({knobs}), {self.grid}"

    def plan(self, model: Model, steps: int, seed: int) -> fs.Plan:
        """The table of a run; ValueError where there is none of so many steps."""
        schedule = model.denoiser.schedule
        chosen: int | fs.Grid = steps
        if self.grid == "random":
            chosen = fs.grids.random(noisiest(schedule), steps, seed)
        elif self.grid != "own":
            chosen = GRIDS[self.grid](schedule, steps)
        with warnings.catch_warnings():  # short chains that start below T do so on purpose
            warnings.simplefilter("ignore", UserWarning)
            return METHODS[self.method].make(
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
    options: dict[str, Any] = field(default_factory=dict)
    grid: str = "linspace"
    clips: bool = True
    peer = True

    @property
    def name(self) -> str:
        """A unique name."""
        knobs = {k: v for k, v in self.options.items() if not _is_grid(k)}
        text = ", ".join(f"{k}={v}" for k, v in knobs.items())
        end = "" if self.clips else ", no clipping"
        return f"diffusers {self.scheduler}({text}), {self.grid}{end}"

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
        return self.name, steps

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
        given = {"generator": torch.Generator().manual_seed(seed)} if takes_noise else {}
        learned = self.options.get("variance_type") == "learned_range"
        channels = start.shape[1]
        x = start
        with torch.inference_mode():
            for t in scheduler.timesteps:
                output = model.denoiser.call(x, t.expand(len(x)), {})
                output = output if learned else output[:, :channels]
                x = scheduler.step(output, t, x, **given).prev_sample
        return x


Contestant = Ours | Peer


def contestants(model: Model) -> list[Contestant]:
    """All that is compared on a model."""
    learned = model.denoiser.variance == "learned_range"
    return [*_ours(learned, model.name == "digits"), *_peers(learned, model.name == "digits")]


def _ours(learned: bool, digits: bool) -> list[Contestant]:
    found: list[Contestant] = []
    few = DIGITS_GRIDS if digits else ALL_GRIDS
    crossed: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("DDIM", "ddim", {}, ALL_GRIDS),
        ("DPM-Solver++ 2M", "dpm++", {"order": 2}, ALL_GRIDS),
        ("DPM-Solver++ 3M", "dpm++", {"order": 3}, ALL_GRIDS),
        ("UniPC", "unipc", {"order": 2}, ALL_GRIDS),
        ("SDE 2M", "dpm++", {"order": 2, "stochastic": True}, few),
        ("DDPM", "ancestral", {"variance": "small"}, few),
        ("DDPM, large variance", "ancestral", {"variance": "large"}, few),
        ("shortcut", "shortcut", {}, (*few, "random") if digits else few),
    ]
    if learned:
        crossed.append(("DDPM, learned variance", "ancestral", {"variance": "learned_range"}, few))
    for family, method, knobs, names in crossed:
        for grid in names:
            if not (digits and grid == "random" and method != "shortcut"):
                found.append(Ours(family, method, knobs, grid))
    for approximation in ("steps", "var"):
        for spacing in ("linear", "quadratic"):
            for extended in (False, True):
                knobs = {"approximation": approximation, "spacing": spacing, "extended": extended}
                found.append(Ours("FastDPM", "fastdpm", knobs))
    return found


_TIMES: dict[str, dict[str, Any]] = {
    "linspace": {},  # the default of all but DDIM and DDPM, and the same as "uniform" but for 1
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}


def _is_grid(option: str) -> bool:
    return any(option in options for options in _TIMES.values())


def _peers(learned: bool, digits: bool) -> list[Contestant]:
    spaced = ("leading", "trailing", "linspace")
    by_sigma = ("linspace", "trailing", "karras", "exponential", "beta")
    dpm, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    sde = {"algorithm_type": "sde-dpmsolver++"}
    crossed: list[tuple[str, str, dict[str, Any], Sequence[str]]] = [
        ("DDIM", "DDIMScheduler", {}, spaced),
        ("DPM-Solver++ 2M", dpm, {}, (*by_sigma, "lu")),
        ("DPM-Solver++ 3M", dpm, {"solver_order": 3}, (*by_sigma, "lu")),
        ("UniPC", unipc, {}, by_sigma),
        ("UniPC", unipc, {"solver_order": 3}, by_sigma),
        ("DEIS", "DEISMultistepScheduler", {}, by_sigma),
        ("SDE 2M", dpm, sde, ("linspace", "karras", "lu")),
        ("DDPM", "DDPMScheduler", {}, spaced),
    ]
    if learned:
        crossed.append(
            ("DDPM, learned variance", "DDPMScheduler", {"variance_type": "learned_range"}, spaced)
        )
    found: list[Contestant] = []
    for family, scheduler, options, names in crossed:
        for grid in names:
            times = _TIMES[grid] or {"timestep_spacing": "linspace"}
            found.append(Peer(family, scheduler, {**options, **times}, grid))
    if digits:  # as they come, without the clipping that they know under another name
        for family, scheduler in (("DPM-Solver++ 2M", dpm), ("UniPC", unipc)):
            for grid in ("linspace", "karras"):
                found.append(Peer(family, scheduler, dict(_TIMES[grid]), grid, clips=False))
    return found
