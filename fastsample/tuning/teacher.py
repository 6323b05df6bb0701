"""The teacher of a tuned plan: a fine deterministic run, remembered at many times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray
from fastsample.denoiser.batches import arguments_of
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import clip_bounds, x0_terms
from fastsample.samplers.dpm_solver import dpm_solver
from fastsample.sampling.noise import make_identity
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.tuning.split import Shares

_POWER = 1.5  # times T (k / S)^1.5: of 1, 1.5 and 2 the nearest to the limit on every model tried


def teacher_times(schedule: NoiseSchedule, steps: int) -> FloatArray:
    """Ascending times in (0, T], denser near the data; whole ones for a schedule with steps."""
    times = schedule.T * (np.arange(1, steps + 1) / steps) ** _POWER
    if schedule.num_steps is None:
        return times
    return np.unique(np.maximum(np.rint(times), 1.0))


class Network:
    """A model's x0 at numbered times, in batches, guided and clipped as the plan will be.

    Attributes:
        calls: samples that the network has seen, halves of a guided batch counted.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: FloatArray,
        *,
        clip: Any,
        cond: Mapping[str, Any] | None,
        uncond: Mapping[str, Any] | None,
        guidance: float | None,
        batch_size: int,
    ) -> None:
        self.denoiser, self.times, self.batch_size = denoiser, times, batch_size
        self.alpha, self.sigma = denoiser.schedule.levels(times)
        self.terms = x0_terms("tune", denoiser.prediction, self.alpha, self.sigma)
        self.bounds = clip_bounds("tune", clip)
        with torch.inference_mode(False):  # they may come to be part of a graph
            self.told = denoiser.network_times(times)
        self.cond, self.uncond, self.guidance = cond, uncond, guidance
        self.calls = 0

    @property
    def clips(self) -> bool:
        """Whether x0 is held in a range."""
        return any(map(math.isfinite, self.bounds))

    def output(self, x: Tensor, k: int, first: int) -> tuple[Tensor, Tensor | None]:
        """(conditional, unconditional or None) outputs for samples from number `first` on."""
        arguments = arguments_of("tune", self.cond, first, x)
        uncond = None
        if self.guidance is not None:
            uncond = arguments_of("tune", self.uncond, first, x)
        conditions = Conditions("tune", arguments, uncond, len(x), x.device)
        fed = conditions.doubled(x.to(self.denoiser.dtype))
        told = self.told[k].expand(len(fed))
        self.calls += len(fed)
        conditional, unconditional = conditions.split(
            self.denoiser.call(fed, told, conditions.arguments)[:, : x.shape[1]]
        )
        return conditional, unconditional

    def x0(self, x: Tensor, k: int, first: int) -> Tensor:
        """Clamped x0 of samples `(n, *shape)` at time number k, in the dtype of x."""
        parts = []
        for begin in range(0, len(x), self.batch_size):
            part = x[begin : begin + self.batch_size]
            m, u = self.output(part, k, first + begin)
            if u is not None and self.guidance is not None:
                m = u + self.guidance * (m - u)
            p, q = (float(term[k]) for term in self.terms)
            parts.append(torch.clamp(p * part + q * m.to(x.dtype), *self.bounds))
        return torch.cat(parts)


class Teacher:
    """States of the teacher at its times, and the noise that it started from.

    Attributes:
        times: `(C,)` ascending: the times a tuned plan may use.
        network: the model at these times.
        shares: which samples these are.
        states: `(C + 1, N, *shape)`; 0 is the result, i + 1 belongs to ``times[i]``.
    """

    def __init__(self, network: Network, shares: Shares, seed: int) -> None:
        self.network, self.times, self.shares = network, network.times, shares
        denoiser = network.denoiser
        index = torch.from_numpy(shares.index)
        identity = make_identity("tune", seed, index, len(index), denoiser.device)
        start = ops.noise(*identity, denoiser.shape, dtype=torch.float32)
        self.plan = self._plan()
        rows = torch.from_numpy(self.plan.rows.copy())
        self.states = start.new_empty(len(self.times) + 1, *start.shape)
        self.states[-1] = start
        history: list[Tensor] = []
        for k in range(len(self.times) - 1, -1, -1):
            x = self.states[k + 1]
            x0 = network.x0(x, k, 0)
            a, b, c1, c2 = (float(v) for v in rows[len(self.times) - 1 - k, [5, 6, 8, 9]])
            new = a * x + b * x0
            for c, h in zip((c1, c2), history, strict=False):
                new = new + c * h
            self.states[k] = new
            self._check_finite(k)
            history = [x0, *history][:2]

    @property
    def start(self) -> Tensor:
        """`(N, *shape)` noise."""
        return self.states[-1]

    @property
    def result(self) -> Tensor:
        """`(N, *shape)` what a perfect plan would give."""
        return self.states[0]

    def _plan(self) -> Plan:
        denoiser = self.network.denoiser
        return dpm_solver(
            denoiser.schedule,
            Grid(np.append(self.times[::-1], 0.0)),
            order=3,
            corrected=True,
            clip=None,
            prediction=denoiser.prediction,
        )

    def _check_finite(self, k: int) -> None:
        broken = self.shares.sum((~torch.isfinite(self.states[k]).all()).reshape(1))
        if broken[0] > 0:
            raise ValueError(
                "tune: the model's output must be finite, got NaN or infinity at "
                f"t = {self.times[k]:g}"
            )
