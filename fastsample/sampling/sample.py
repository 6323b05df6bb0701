"""The main job: `sample`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.tensors import check_tensor, make_device
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.wrap import as_denoiser
from fastsample.plans.rows import Clip
from fastsample.sampling.diagnosis import name_bad_row, progress_bar
from fastsample.sampling.graph import run_graph
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import agreed_batch, make_identity
from fastsample.sampling.resolve import Resolved, Steps, Wanted, make_dtype, resolve
from fastsample.schedules.schedule import NoiseSchedule


def sample(
    model: Any,
    steps: Steps = 10,
    *,
    num_samples: int | None = None,
    method: str = "auto",
    grid: str = "auto",
    seed: int | Sequence[int] = 0,
    sample_index: int | Sequence[int] | Tensor | None = None,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    clip: Clip | Literal["auto"] = "auto",
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    threshold: float | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    graph: bool = False,
    **knobs: Any,
) -> Tensor:
    """Draw samples in exactly K network calls, one per row of the plan.

    Sample i is the same in any batch, on any device and with any number of ranks, up to what the
    network itself computes: its noise is a function of (seed, index, row, element) alone.

    Without gradients, unless grad mode is on and `start`, `noise` or a condition requires grad;
    then the result is differentiable in it.

    Args:
        model: a `Denoiser`, or a callable ``(x, t) -> output`` with `shape` (epsilon prediction,
            network index t - 1; wrap it in a `Denoiser` for anything else).
        steps: K (other people's lists, see `grid`, may hold another number of times); or the times
            themselves (a `Grid`, or a list that ends at 0); or a whole `Plan`, which decides what
            `method`, its knobs, `grid` and `clip` would: leave those.
        num_samples: how many; None is what `start`, `noise`, `cond`, `sample_index` or `seed` say,
            else 1.
        method: the sampler, one of `fastsample.samplers.registry.METHODS`. "auto" is the
            plan that was tuned for this model and number of steps (`Denoiser.with_plans`), if it
            has one and neither times, knobs nor guidance are given; else the method that the knobs
            belong to, else "ddim" (`fastsample.sampling.resolve.resolve`).
        grid: how K times are spread when `steps` is a number: one of
            `fastsample.grids.registry.GRIDS`, or "random", drawn from `seed`, or "auto": the best
            for the profile that the model carries (`Denoiser.with_profile`), uniform without one.
            Methods that choose their times leave it out.
        seed: 64-bit seed; a sequence gives each sample its own, with index 0.
        sample_index: global index of each sample, or of the first one; None counts from 0.
        start: x_T ``(B, *shape)`` instead of generated noise; it is not modified.
        noise: the steps' noise ``(K, B, *shape)`` instead of generated noise.
        shape: shape of one sample, for a bare callable.
        schedule: noise schedule for a bare callable; None is ``NoiseSchedule.linear()``.
        clip: range x0 is held in; "auto" is the model's own.
        guidance: classifier-free guidance scale w in ``u + w (c - u)``, one or one per row; None
            is off. A network call in a row of another scale than 1 runs 2 B samples.
        guidance_interval: times (low, high); rows called at ``low < t <= high`` are guided.
        guidance_rescale: share in [0, 1] of bringing the guided output back to the conditional
            one's standard deviation.
        threshold: quantile in (0, 1] of dynamic thresholding, 0.995 in the Imagen paper; needs a
            clip bound. None is off: x0 is clamped.
        cond: keyword arguments for the network, one entry per sample (or a number for all).
        uncond: the same for "no condition"; None is the model's own.
        device: where the samples live; None is where the model is. A module is not moved.
        dtype: dtype of the samples; None is that of `start`, else the model's. Step arithmetic is
            float32 (float64 for float64) in any case.
        progress: show a progress bar.
        callback: called after each row with a `Step` (row, time, x, x0).
        graph: capture network and step in a CUDA graph and replay it K times; the capture calls
            the network three times more; every row of a guided run then takes 2 B samples. CUDA
            only.
        **knobs: what the method takes besides: its keyword arguments, as ``eta=1.0`` of `ddim`,
            ``variance="large"`` of `ancestral` (the model's own by default), ``order=3`` of
            `dpm_solver`. `fastsample.samplers.registry` has the list. A knob that one method alone
            takes selects it when `method` is "auto".

    Returns:
        ``(num_samples, *shape)``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, shapes that do not fit, or a network that returns NaN
            or infinity (the message names the row and time).
    """
    denoiser = as_denoiser(model, shape, schedule, "sample")
    wanted = Wanted(
        steps,
        method,
        grid,
        clip,
        knobs,
        seed,
        guidance,
        guidance_interval,
        guidance_rescale,
        threshold,
        uncond,
    )
    # NumPy, once per run: nothing for torch.compile. (As a decorator it would import dynamo, 2 s.)
    resolved: Any = resolve
    if torch.compiler.is_compiling():
        resolved = torch.compiler.disable(resolve)
    run_as: Resolved = resolved("sample", denoiser, wanted)
    plan, correct = run_as.plan, run_as.correct
    if callback is not None and not callable(callback):
        raise TypeError(f"sample: callback must be callable, got {callback!r}")
    where = make_device("sample", device) or denoiser.device
    denoiser.check_device("sample", where)
    batch = agreed_batch(num_samples, start, noise, cond, sample_index, seed)
    sample_dtype = make_dtype(dtype, start, denoiser)
    identity = make_identity("sample", seed, sample_index, batch, where)
    conditions = Conditions("sample", cond, run_as.uncond, batch, where)
    check_tensor("start", start, (batch, *denoiser.shape), sample_dtype, where)
    check_tensor("noise", noise, (len(plan), batch, *denoiser.shape), sample_dtype, where)

    given = [t for t in (start, noise, *conditions.tensors()) if t is not None]
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if ops.has_tangent(given):
        raise ValueError(
            "sample: start, noise and conditions must have no forward-mode tangent, got one; "
            "use reverse mode, or fastsample.sampling.loop.run"
        )
    if graph and (wants_grad or callback or noise is not None or correct):
        raise ValueError(
            "sample: graph must be False with gradients, a callback, explicit noise, "
            "guidance_rescale or threshold, got True"
        )

    def starting() -> Tensor:
        if start is not None:
            return start if wants_grad else start.detach().clone()
        return ops.noise(identity.seeds, identity.index, denoiser.shape, dtype=sample_dtype)

    def finished(x: Tensor) -> Tensor:
        # The one wait for the device, after the loop.
        if batch and not torch.isfinite(x.detach()).all():
            name_bad_row(denoiser, plan, starting, identity, noise, conditions, correct)
        return x

    with torch.set_grad_enabled(wants_grad), progress_bar(progress, plan) as bar:
        x = starting()
        if graph:
            return finished(
                run_graph(
                    denoiser,
                    plan,
                    x,
                    identity=identity,
                    conditions=conditions,
                    after_row=bar.update,
                )
            )
        x = run(
            denoiser,
            plan,
            x,
            identity=identity,
            noise=noise,
            conditions=conditions,
            in_place=not wants_grad,
            inference=not wants_grad,
            callback=callback,
            correct=correct,
            watch=(lambda *_: bar.update()) if progress else None,
        )
        return finished(x)
