"""The sampling loop, which runs any plan with one network call and one kernel per row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.sampling.noise import Identity

Correct: TypeAlias = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class Step(NamedTuple):
    """The state of a run after a row, which `sample` passes to its callback."""

    row: int
    """The number of the row that was just run; 0 is the noisiest."""
    time: float
    """The time t at which the network was called (0 is data, T is noise)."""
    x: Tensor
    """The samples after the row, `(B, *shape)`."""
    x0: Tensor
    """The row's x0 estimate `(B, *shape)`, in float32 or float64. Multistep plans read it
    again in later rows: copy it before you change it."""


class Tables(NamedTuple):
    """Holds a plan's numbers on the device, so that the loop never waits for the host."""

    rows: Tensor
    """The rows `(K, 13)` in float64 (float32 where the device has no float64)."""
    numbers: Tensor
    """The row numbers 0..K-1 as int64 `(K,)`."""
    timesteps: Tensor
    """The timestep that the network takes in each row, `(K,)`."""


def make_tables(denoiser: Denoiser, plan: Plan, device: torch.device) -> Tables:
    """Copy a plan's rows, their numbers and the network's timesteps to a device."""
    return Tables(
        torch.as_tensor(np.array(plan.rows), dtype=ops.rows_dtype(device), device=device),
        torch.arange(len(plan), device=device),
        denoiser.network_times(plan.times, device),
    )


def run(
    denoiser: Denoiser,
    plan: Plan,
    x: Tensor,
    *,
    identity: Identity | None = None,
    noise: Tensor | None = None,
    conditions: Conditions | None = None,
    rows: Tensor | None = None,
    history: int | None = None,
    in_place: bool = False,
    inference: bool = False,
    watch: Callable[[int, Tensor, Tensor], object] | None = None,
    callback: Callable[[Step], object] | None = None,
    correct: Correct | None = None,
) -> Tensor:
    """Run every row of a plan from `x` in ``len(plan)`` network calls; return the samples.

    Sampling, the trainer's chain, the teacher and the candidates of tuning, and the trajectories of
    a profile all run here. Differentiable when gradients are enabled (unless `inference`).

    Args:
        denoiser: the model. A module's input is cast to its dtype, and its output back.
        plan: the rows.
        x: starting samples `(B, *shape)` on the model's device.
        identity: seeds and indices for generated noise; may be None for deterministic plans or
            with `noise`.
        noise: explicit noise `(K, B, *shape)` instead of generated noise.
        conditions: extra arguments of the network.
        rows: coefficients `(K, 13)` on the device instead of the plan's, for gradients with respect
            to them.
        history: number of earlier x0 that are kept for later rows; None is what the rows of `plan`
            need.
        in_place: overwrite `x` instead of allocating a tensor per row.
        inference: call the network in inference mode.
        watch: called with (row, model output, x_next) after each row, to diagnose a run.
        callback: called with a `Step` after each row.
        correct: changes outputs before the kernel:
            ``(row, x, conditional, unconditional) -> (conditional, unconditional)``.

    Returns:
        Samples `(B, *shape)`.
    """
    tables = make_tables(denoiser, plan, x.device)
    conditions = conditions or Conditions("run", batch=x.shape[0], device=x.device)
    table = tables.rows if rows is None else rows
    # Read what depends on the plan alone before the loop, to keep the host's work per row short.
    num_earlier = plan.needs_history if history is None else history
    numbers, timesteps = tables.numbers.unbind(), tables.timesteps.unbind()
    scales, times = plan.column("w").tolist(), plan.times.tolist()
    dtype = denoiser.input_dtype(x.dtype)
    # With seeds, the kernel generates noise, so deterministic plans pass none.
    generates = identity is not None and noise is None and plan.is_stochastic
    seeds, index = identity if generates and identity else (None, None)
    earlier_x0: tuple[Tensor, ...] = ()
    for k, number in enumerate(numbers):
        # A row whose guidance scale is 1 needs no unconditional output.
        row_conditions = conditions if scales[k] != 1.0 else conditions.conditional
        network_input = row_conditions.doubled(x)
        timestep = timesteps[k].expand(network_input.shape[0])
        with torch.inference_mode() if inference else nullcontext():
            output = denoiser.at_timestep(network_input, timestep, row_conditions.arguments, dtype)
        del network_input
        conditional, unconditional = row_conditions.split(output)
        if correct:
            conditional, unconditional = correct(k, x, conditional, unconditional)
        operands = {
            "uncond": unconditional,
            "seeds": seeds,
            "index": index,
            "noise": None if noise is None else noise[k],
            "h1": earlier_x0[0] if earlier_x0 else None,
            "h2": earlier_x0[1] if len(earlier_x0) > 1 else None,
        }
        if num_earlier or callback:
            x, x0 = ops.step_x0(x, conditional, table, number, **operands)
            earlier_x0 = (x0, *earlier_x0)[:num_earlier]
            if callback:
                callback(Step(k, times[k], x, x0))
        else:
            target = x if in_place else None
            x = ops.step(x, conditional, table, number, target=target, **operands)
        if watch:
            watch(k, output, x)
        # Free the output before the next call: two at once would be the run's peak of memory.
        x0 = None
        del output, conditional, unconditional, operands
    return x
