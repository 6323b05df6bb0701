"""Defines what the quality benchmark compares: methods on grids, tuned plans, diffusers."""

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
    """Samples with a method of this package on a grid.

    Attributes:
        family: the solver that it is a setting of, one line of the plot.
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
        """Return the method with its options as text."""
        return diffusers_schedulers.call_text(self.method, self.knobs)

    def plan(self, model: Model, steps: int, seed: int) -> fs.Plan:
        """Return the plan of a run; raise ValueError without one of this number of steps."""
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
        with warnings.catch_warnings():  # Some grids start below T.
            warnings.simplefilter("ignore", UserWarning)
            return method.make(
                schedule,
                chosen,
                clip=model.denoiser.clip,
                prediction=model.denoiser.prediction,
                **self.knobs,
            )

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Return a key that is equal for runs with equal samples, up to rounding."""
        plan = self.plan(model, steps, seed)
        return np.round(plan.nodes, 6).tobytes(), np.round(plan.rows, 9).tobytes()

    def deterministic(self, model: Model, steps: int) -> bool:
        """Return whether the samples depend on the starting noise alone."""
        return not self.plan(model, steps, 0).is_stochastic

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Draw samples, shaped as `start`, from this starting noise."""
        plan = self.plan(model, steps, seed)
        return fs.sample(model.denoiser, plan, start=start, seed=seed)


@dataclass(frozen=True)
class Tuned:
    """Samples with the plan of `fastsample.tune` for the model and the number of steps.

    The plan was tuned on other noise than the benchmark's.
    """

    family: str = "tuned"
    method: str = "tuned"
    grid: str = "its own"
    peer = False

    @property
    def label(self) -> str:
        """Return the name in tables."""
        return "fs.tune"

    def plan(self, model: Model, steps: int) -> fs.Plan:
        """Return the model's plan; raise ValueError without one of this number of steps."""
        plan = model.tuned(steps)
        if plan is None:
            raise ValueError(f"contestants: model must have a plan of {steps} steps, got none")
        return plan

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Return a key that is equal for runs with equal samples, so that one can stand for all."""
        return self.plan(model, steps)

    def deterministic(self, model: Model, steps: int) -> bool:
        """Return whether the samples depend on the starting noise alone."""
        return True

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Draw samples, shaped as `start`, from this starting noise."""
        return fs.sample(model.denoiser, self.plan(model, steps), start=start)


class Peer(diffusers_schedulers.DiffusersSampler):
    """Samples with a scheduler of diffusers."""

    peer = True

    def key(self, model: Model, steps: int, seed: int) -> Hashable:
        """Return a key that is equal for runs with equal samples, so that one can stand for all."""
        return self, steps

    def deterministic(self, model: Model, steps: int) -> bool:
        """Return whether the samples depend on the starting noise alone."""
        return not self.is_stochastic

    def draw(self, model: Model, steps: int, start: Tensor, seed: int) -> Tensor:
        """Draw samples, shaped as `start`, from this starting noise."""
        return self.run(model.denoiser, steps, start, generator=generator("noise", seed))


Contestant = Ours | Tuned | Peer
