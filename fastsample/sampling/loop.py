"""The one loop: it runs any plan, one network call and one kernel per row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.plans.plan import Plan
from fastsample.sampling.noise import Identity

Correct: TypeAlias = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class Step(NamedTuple):
    """What a callback sees after each row."""

    row: int
    """Number of the row just run, 0 = noisiest."""
    time: float
    """Project time the network was called at."""
    x: Tensor
    """Samples after the row `(B, *shape)`."""
    x0: Tensor
    """The row's clean estimate `(B, *shape)`, in arithmetic precision. Multistep plans read it
    again in later rows: copy it to change it."""


class Tables(NamedTuple):
    """A plan on the device; nothing in the loop waits for the host."""

    rows: Tensor
    """`(K, 13)`, float64 (float32 where the device has no float64)."""
    numbers: Tensor
    """`(K,)` int64 row numbers."""
    timesteps: Tensor
    """`(K,)` what the network is told at each row."""


def make_tables(denoiser: Denoiser, plan: Plan, device: torch.device) -> Tables:
    """Upload a plan."""
    return Tables(
        torch.as_tensor(plan.rows.copy(), dtype=ops.rows_dtype(device), device=device),
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
    """Run every row of a plan from `x`, with exactly ``len(plan)`` network calls.

    Whatever runs rows runs them here: sampling, the trainer's chain, the teacher and the candidates
    of tuning, the trajectories of a profile. Differentiable when gradients are enabled (unless
    `inference`).

    Args:
        denoiser: the model. A module's input is cast to its dtype, and its output back.
        plan: the rows.
        x: starting samples `(B, *shape)` on the model's device.
        identity: seeds and indices for generated noise; may be None for deterministic plans or
            with `noise`.
        noise: explicit noise `(K, B, *shape)` instead.
        conditions: extra arguments of the network.
        rows: coefficients `(K, 13)` on the device instead of the plan's, for gradients with respect
            to them.
        history: how many earlier x0's rows may look back at; None is what the plan's own rows need.
        in_place: overwrite `x` instead of allocating a tensor per row.
        inference: call the network in inference mode.
        watch: called with (row, model output, x_next) after each row; for diagnosis.
        callback: called with a `Step` after each row.
        correct: changes outputs before the kernel, given (row, x, conditional, unconditional).

    Returns:
        Samples `(B, *shape)`.
    """
    tables = make_tables(denoiser, plan, x.device)
    conditions = conditions or Conditions("run", batch=x.shape[0], device=x.device)
    table = tables.rows if rows is None else rows
    # Everything that depends on the plan alone is read before the first row.
    keep = plan.needs_history if history is None else history
    numbers, timesteps = tables.numbers.unbind(), tables.timesteps.unbind()
    scales, times = plan.column("w").tolist(), plan.times.tolist()
    dtype = denoiser.network_dtype
    # A plan without noise must not pass for one that makes it: the kernels choose by the seeds.
    draws = identity is not None and noise is None and plan.is_stochastic
    seeds, index = identity if draws and identity else (None, None)
    kept: tuple[Tensor, ...] = ()
    for k, number in enumerate(numbers):
        # A row of scale 1 needs no unconditional half.
        here = conditions if scales[k] != 1.0 else conditions.conditional
        fed = here.doubled(x if dtype is None or x.dtype == dtype else x.to(dtype))
        with torch.inference_mode() if inference else nullcontext():
            output = denoiser.at_timestep(fed, timesteps[k].expand(fed.shape[0]), here.arguments)
        del fed
        output = output if output.dtype == x.dtype else output.to(x.dtype)
        conditional, unconditional = here.split(output)
        if correct:
            conditional, unconditional = correct(k, x, conditional, unconditional)
        operands = {
            "uncond": unconditional,
            "seeds": seeds,
            "index": index,
            "noise": None if noise is None else noise[k],
            "h1": kept[0] if kept else None,
            "h2": kept[1] if len(kept) > 1 else None,
        }
        if keep or callback:
            x, x0 = ops.step_x0(x, conditional, table, number, **operands)
            kept = (x0, *kept)[:keep]
            if callback:
                callback(Step(k, times[k], x, x0))
        else:
            target = x if in_place else None
            x = ops.step(x, conditional, table, number, target=target, **operands)
        if watch:
            watch(k, output, x)
        # Before the next call: two outputs alive at once would be the peak of the whole run.
        x0 = None
        del output, conditional, unconditional, operands
    return x
