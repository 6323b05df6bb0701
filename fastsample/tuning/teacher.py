"""Runs the teacher of a tuned plan: a fine deterministic run that keeps its states."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.grids.grid import Grid
from fastsample.grids.scheduled import explodes, log_snr
from fastsample.ops.draws import TUNE_DRAW
from fastsample.plans.rows import clip_bounds
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.sampling.loop import Step
from fastsample.sampling.noise import make_identity
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.tuning.runner import Runner
from fastsample.tuning.split import Split

# This is the exponent p of the times T (k / S)^p. Of 1, 1.5 and 2 it gave the results nearest to
# the limit of infinitely many steps on every model tried.
_POWER = 1.5


def teacher_times(schedule: NoiseSchedule, steps: int) -> FloatArray:
    """Return ascending times in (0, T], denser near the data.

    They are integers, and may be fewer, for a schedule with integer steps. For a variance-exploding
    one they are those of `grids.log_snr`.

    Args:
        schedule: the noise schedule.
        steps: number of times.
    """
    if explodes(schedule):
        return log_snr(schedule, steps).times[-2::-1]
    times = schedule.T * (np.arange(1, steps + 1) / steps) ** _POWER
    if schedule.num_steps is None:
        return times
    return np.unique(np.maximum(np.rint(times), 1.0))


class Teacher:
    """Runs a sampler with many steps, and holds its states, starting noise and results.

    Args:
        runner: runs plans of the model.
        times: `(C,)` ascending.
        split: the samples of this process.
        seed: 64-bit seed of the noise.

    Attributes:
        times: `(C,)` the times that a tuned plan may use.
        model: the model at these times.
        plan: the rows of the fine run.
        states: `(C + 1, N, *shape)`; state 0 is the result, state i + 1 belongs to ``times[i]``.

    Raises:
        ValueError: a network that returns NaN or infinity; the message names the time.
    """

    def __init__(self, runner: Runner, times: FloatArray, split: Split, seed: int) -> None:
        self.runner, self.times, self.split = runner, times, split
        self.model = runner.at_times(times)
        denoiser = runner.denoiser
        index = torch.as_tensor(split.index, device="cpu")
        identity = make_identity("tune", seed, index, len(index), denoiser.device)
        start = ops.noise(*identity, denoiser.shape, draw=TUNE_DRAW, dtype=torch.float32)
        start = start * denoiser.schedule.start_scale(float(times[-1]))
        self.plan = dpm_solver(
            denoiser.schedule,
            Grid(np.append(times[::-1], 0.0)),
            order=3,
            corrected=True,
            clip=runner.clip,
            prediction=denoiser.prediction,
        )
        self.states = start.new_empty(len(times) + 1, *start.shape)
        self.states[-1] = start

        def remember(part: slice, step: Step) -> None:
            self.states[len(times) - 1 - step.row, part] = step.x

        runner.run(self.plan, start, 0, after_row=remember)
        self._check_finite()

    @property
    def start(self) -> Tensor:
        """Return the starting noise `(N, *shape)`."""
        return self.states[-1]

    @property
    def result(self) -> Tensor:
        """Return the results `(N, *shape)`, which are the target of a tuned plan."""
        return self.states[0]

    @property
    def clips(self) -> bool:
        """Return whether x0 is clamped to a range."""
        return any(map(math.isfinite, clip_bounds("tune", self.runner.clip)))

    def _check_finite(self) -> None:
        """Raise ValueError for NaN or infinity in the states of any process."""
        num_broken = torch.stack([~torch.isfinite(state).all() for state in self.states[:-1]])
        num_broken = self.split.sum(num_broken)
        if bool(num_broken.any()):
            # Once a state is NaN, all later ones are: the noisiest NaN is where the model failed.
            k = int(num_broken.nonzero().max())
            raise ValueError(
                "tune: the model's output must be finite, got NaN or infinity at "
                f"t = {self.times[k]:g}"
            )
