"""Runs plans on tuning's samples in batches, with the guidance and clip of the tuned plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample.denoiser.at_times import AtTimes
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip
from fastsample.sampling.loop import Step, run


class Runner:
    """Runs plans with the sampler's own loop, and counts the network's work.

    Args:
        denoiser: the model.
        conditions: the conditions of all samples of this process, on the model's device.
        clip: range that x0 is clamped to.
        guidance: classifier-free guidance scale; None is no guidance.
        batch_size: samples per network call.

    Attributes:
        calls: number of samples in all network calls so far; both halves of a guided batch count.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: Conditions,
        *,
        clip: Clip,
        guidance: float | None,
        batch_size: int,
    ) -> None:
        self.denoiser, self.conditions, self.clip = denoiser, conditions, clip
        self.guidance, self.batch_size = guidance, batch_size
        self.calls = 0

    def with_guidance(self, plan: Plan) -> Plan:
        """Return the plan with the guidance scale of this tuning."""
        return plan if self.guidance is None else plan.with_guidance(self.guidance)

    def run(
        self,
        plan: Plan,
        start: Tensor,
        first: int,
        *,
        rows: Tensor | None = None,
        history: int | None = None,
        after_row: Callable[[slice, Step], object] | None = None,
    ) -> Tensor:
        """Run a plan and return its results.

        Args:
            plan: the rows, without guidance.
            start: noise `(n, *shape)`.
            first: local position of the first sample of `start`.
            rows: coefficients instead of the plan's, as for `fastsample.sampling.loop.run`.
            history: as for `fastsample.sampling.loop.run`.
            after_row: called after each row of each batch with the batch's positions in `start`
                and the step.

        Returns:
            `(n, *shape)`.
        """
        plan = self.with_guidance(plan)
        results: list[Tensor] = []
        for begin in range(0, len(start), self.batch_size):
            part = slice(begin, min(begin + self.batch_size, len(start)))
            x = start[part]
            results.append(
                run(
                    self.denoiser,
                    plan,
                    x,
                    conditions=self.conditions.part(first + begin, x),
                    rows=rows,
                    history=history,
                    callback=None if after_row is None else partial(after_row, part),
                )
            )
            halves = 2 if plan.is_guided else 1
            self.calls += halves * len(x) * plan.calls
        return torch.cat(results) if len(results) > 1 else results[0]

    def at_times(self, times: FloatArray) -> AtTimes:
        """Return the model at a fixed list of times; its calls add to `calls`."""

        def count(samples: int) -> None:
            self.calls += samples

        return AtTimes(
            self.denoiser,
            times,
            function="tune",
            clip=self.clip,
            guidance=self.guidance,
            batch_size=self.batch_size,
            on_call=count,
        )
