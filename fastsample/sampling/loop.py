"""The sampling loop, which runs any plan with at most one network call and one kernel per row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.failures import explain
from fastsample.plans.plan import Plan
from fastsample.sampling.functional import FunctionalSteps
from fastsample.sampling.noise import Identity
from fastsample.sampling.program import Program

Correct: TypeAlias = Callable[[int, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class Step(NamedTuple):
    """The state of a run after a row, which `sample` passes to its callback."""

    row: int
    """The number of the row that was just run; 0 is the noisiest."""
    time: float
    """The time t that the network was called with (0 is data, T is noise)."""
    x: Tensor
    """The samples after the row, `(B, *shape)`.

    This is the run's own tensor: a callback that writes to it in place (``step.x.mul_(0.5)``,
    ``step.x[:, :3] = 0``) changes what the next row starts from, and after the last row the result.
    The x0's that multistep plans look back at stay as they were before the change."""
    x0: Tensor
    """The row's x0 estimate `(B, *shape)`, in float32 or float64; in a row without a network call
    that of the last call. Multistep plans read it again in later rows: copy it before you change
    it."""


def run(
    denoiser: Denoiser,
    plan: Plan | Program,
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
    count_call: Callable[[], object] | None = None,
    spare: list[Tensor] | None = None,
) -> Tensor:
    """Run every row of a plan from `x` in ``plan.calls`` network calls; return the samples.

    Sampling, the trainer's chain, the teacher and the candidates of tuning, and the trajectories of
    a profile all run here. Differentiable when gradients are enabled (unless `inference`).

    Args:
        denoiser: the model. A module's input is cast to its dtype, and its output back.
        plan: the rows, or their `Program` on the device of `x`.
        x: starting samples `(B, *shape)` on the model's device.
        identity: seeds and indices for generated noise; may be None for deterministic plans or
            with `noise`.
        noise: explicit noise `(K', B, *shape)` instead of generated noise.
        conditions: extra arguments of the network.
        rows: coefficients `(K', 15)` on the device instead of the plan's, for gradients with
            respect to them.
        history: number of earlier x0 that are kept for later rows; None is what the rows of `plan`
            need.
        in_place: overwrite `x` instead of allocating a tensor per row.
        inference: call the network in inference mode.
        watch: called with (row, model output, x_next) after each row, to diagnose a run.
        callback: called with a `Step` after each row.
        correct: changes outputs before the kernel:
            ``(row, x, conditional, unconditional) -> (conditional, unconditional)``.
        count_call: called after each network call, for a progress bar.
        spare: buffers of an earlier run, see `fastsample.ops.DirectSteps`.

    Returns:
        Samples `(B, *shape)`.
    """
    program = plan if isinstance(plan, Program) else Program.of(denoiser, plan, x.device)
    conditions = conditions or Conditions("run", batch=x.shape[0], device=x.device)
    if noise is not None or not program.is_stochastic:
        identity = None  # with seeds, the kernel generates noise
    no_gradient = inference or (in_place and not torch.is_grad_enabled())
    if no_gradient and rows is None and not callback and ops.DirectSteps.can_run(x):
        tables = (program.rows, program.numbers, program.slots)
        steps = ops.DirectSteps(
            x, *tables, *(identity or (None, None)), noise, in_place=in_place, spare=spare
        )
        mode, network = (torch.inference_mode if inference else nullcontext), denoiser.at_timestep
    else:
        # The kernels run outside of inference mode, whose tensors callers could not use in a graph.
        steps = FunctionalSteps(
            program, x, identity, noise, rows, history, callback is not None, in_place
        )
        mode, network = nullcontext, denoiser.at_timestep
        if inference:
            network = torch.inference_mode()(network)
    # Read what depends on the run alone before the loop, to keep the host's work per row short.
    unguided, batch = conditions.conditional, x.shape[0]
    timesteps = timesteps_of_pairs = program.batch_timesteps(batch)
    if conditions.guided:
        timesteps_of_pairs = program.batch_timesteps(2 * batch)
    dtype = denoiser.input_dtype(x.dtype)
    guided_rows = program.guided
    with mode():
        for k, calls in enumerate(program.calls):
            x = steps.x
            output, unconditional, guided = x, None, False
            if calls:
                # A row whose guidance scale is 1 needs no unconditional output.
                guided = conditions.guided and guided_rows[k]
                inputs = conditions if guided else unguided
                timestep = timesteps_of_pairs[k] if guided else timesteps[k]
                # Inference tensors do not count the writes to them.
                version = None if x.is_inference() else x._version
                try:
                    output = network(inputs.doubled(x), timestep, inputs.arguments, dtype)
                except Exception as error:
                    where = f"in row {k} of {len(program.calls)} (t = {program.times[k]:g})"
                    again = partial(denoiser.at_timestep, inputs.doubled(x), cond=inputs.arguments)
                    explain(error, where, timestep, again, denoiser.model, inputs.arguments)
                    raise
                if version is not None and x._version != version:
                    raise ValueError(
                        f"Denoiser: the model must not write to x, got a change in row {k}; copy x "
                        "in the network before writing to it"
                    )
                if inference and output.requires_grad:  # a network may return a parameter
                    output = output.detach()
                if count_call:
                    count_call()
                if correct:
                    output, unconditional = correct(k, x, *inputs.split(output))
                    guided = False
            steps.step(k, output, unconditional, guided)
            if callback and isinstance(steps, FunctionalSteps):
                callback(Step(k, program.times[k], steps.x, steps.x0))
            if watch:
                watch(k, output, steps.x)
            # Free the outputs before the next call: two at once would be the run's peak of memory.
            del output, unconditional, x
    return steps.x
