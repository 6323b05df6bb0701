"""The samplers in the quality benchmark: methods on grids, tuned plans, diffusers' schedulers."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

import fastsample as fs
from benchmarks.models import Model, generator
from fastsample.evaluation import diffusers_schedulers
from fastsample.grids.registry import GRIDS, noisiest
from fastsample.samplers.registry import METHODS


@dataclass(frozen=True)
class Ours:
    """A method of this package on a grid.

    Attributes:
        family: the group that it is compared in, one line of the plot.
        method: name in `fastsample.samplers.registry.METHODS`.
        knobs: options of the method.
        grid: name of the grid, "random" or "auto"; for a method that chooses its times, a name for
            these.
    """

    family: str
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    grid: str = "uniform"
    peer = False

    @property
    def label(self) -> str:
        """The method with its knobs."""
        return diffusers_schedulers.call_text(self.method, self.knobs)

    def plan(self, model: Model, steps: int, seed: int) -> fs.Plan:
        """The plan of a run; ValueError if there is none of this number of steps."""
        schedule = model.denoiser.schedule
        method = METHODS[self.method]
        chosen: int | fs.Grid = steps
        if self.grid == "random":
            chosen = fs.grids.random(noisiest(schedule), steps, seed)
        elif self.grid == "auto":
            best = model.denoiser.profile.best_grid(steps)
            if best is None:
                raise ValueError(f"contestants: the profile must have a grid of {steps} steps")
            chosen = best
        elif not method.chooses_times:
            chosen = GRIDS[self.grid](schedule, steps)
        with warnings.catch_warnings():  # some grids start below T on purpose
            warnings.simplefilter("ignore", UserWarning)
            return method.make(
                schedule,
                chosen,
                clip=model.denoiser.clip,
                prediction=model.denoiser.prediction,
                **self.knobs,
            )

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """A key that is equal for runs with equal samples, up to rounding."""
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
    """The plan of `fastsample.tune` for the model and the number of steps.

    It was tuned on other noise than the benchmark's.
    """

    family: str = "tuned"
    method: str = "tuned"
    grid: str = "its own"
    peer = False

    @property
    def label(self) -> str:
        """The name in tables."""
        return "fs.tune"

    def plan(self, model: Model, steps: int) -> fs.Plan:
        """The model's plan; ValueError if there is none of this number of steps."""
        plan = model.tuned(steps)
        if plan is None:
            raise ValueError(f"contestants: model must have a plan of {steps} steps, got none")
        return plan

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """A key that is equal for runs with equal samples."""
        return self.plan(model, steps)

    def deterministic(self, model: Model, steps: int) -> bool:
        """Whether the samples depend on the starting noise alone."""
        return True

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Samples from the starting noise."""
        return fs.sample(model.denoiser, self.plan(model, steps), start=start)


class Peer(diffusers_schedulers.DiffusersSampler):
    """A scheduler of diffusers with its settings."""

    peer = True

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """A key that is equal for runs with equal samples."""
        return self, steps

    def deterministic(self, model: Model, steps: int) -> bool:
        """Whether the samples depend on the starting noise alone."""
        return not self.is_stochastic

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Samples from the starting noise."""
        return self.run(model.denoiser, steps, start, generator=generator("noise", seed))


Contestant = Ours | Tuned | Peer
