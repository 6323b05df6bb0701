"""The function `sample`, which draws samples: the main function of the package."""

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
from fastsample.sampling.diagnosis import progress_bar, raise_first_bad_row
from fastsample.sampling.graph import run_graph
from fastsample.sampling.loop import Step, run
from fastsample.sampling.noise import agreed_batch, make_identity
from fastsample.sampling.resolve import PlanRequest, Resolved, Steps, make_dtype, resolve
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
    """Draw samples ``(B, *shape)`` in exactly K network calls, one per step of the sampler.

    Sample i is the same in any batch, on any device and with any number of ranks, up to the
    network's own rounding: its noise is a function of (seed, index, row, element) alone.

    Gradients are computed only if grad mode is on and `start`, `noise` or a condition requires
    grad; the result is then differentiable in those.

    Args:
        model: a `Denoiser`, or a callable ``(x, t) -> output`` with `shape` (epsilon prediction,
            network index t - 1; wrap it in a `Denoiser` for anything else).
        steps: the number K of network calls (grids of other libraries, see `grid`, may hold
            another number of times); or the times themselves (a `Grid`, or a list that ends at 0);
            or a whole `Plan`, which goes without `method`, its knobs, `grid` and `clip`.
        num_samples: number of samples B; None takes it from `start`, `noise`, `cond`,
            `sample_index` or `seed`, and is 1 without them.
        method: the sampler, one of `fastsample.samplers.registry.METHODS`. "auto" is the plan that
            was tuned for this model and number of steps (`Denoiser.with_plans`), if there is one
            and neither times, knobs nor guidance are passed; else the one method that takes the
            knobs, else "ddim" (`fastsample.sampling.resolve.resolve`).
        grid: how K times are spread when `steps` is a number: one of
            `fastsample.grids.registry.GRIDS`; or "random", drawn from `seed`; or "auto", the best
            for the model's profile (`Denoiser.with_profile`), uniform without one. Methods that
            choose their times take no grid.
        seed: 64-bit seed, or one per sample ``(B,)``; every sample then has index 0.
        sample_index: global index of each sample ``(B,)``, or of the first one; None counts from 0.
        start: x_T ``(B, *shape)`` instead of generated noise; it is not modified.
        noise: the noise of the steps ``(K, B, *shape)`` instead of generated noise.
        shape: shape of one sample, for a bare callable.
        schedule: noise schedule for a bare callable; None is ``NoiseSchedule.linear()``.
        clip: range that x0 is clamped to, in data units: a bound on |x0|, a pair (lo, hi), or None
            for no clamp; "auto" is the model's.
        guidance: classifier-free guidance scale w in ``u + w (c - u)`` (Ho & Salimans 2022,
            arXiv:2207.12598), one or one per row ``(K,)``; None is off. A network call in a row of
            another scale than 1 runs 2 B samples.
        guidance_interval: times (low, high); rows that call the network at ``low < t <= high`` are
            guided (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        guidance_rescale: weight in [0, 1] of scaling the guided output to the standard deviation of
            the conditional one (Lin et al. 2023, arXiv:2305.08891).
        threshold: quantile in (0, 1] of dynamic thresholding (Saharia et al. 2022,
            arXiv:2205.11487), 0.995 in the paper; needs a clip bound. None is off: x0 is clamped.
        cond: keyword arguments for the network, one entry per sample (or a number for all).
        uncond: the same arguments for "no condition"; None is the model's.
        device: device of the samples; None is the model's. A module is not moved.
        dtype: dtype of the samples; None is that of `start`, else the model's. Step arithmetic is
            float32 (float64 for float64) in any case.
        progress: show a progress bar.
        callback: called after each row with a `Step` (row, time, x, x0).
        graph: capture network and step in a CUDA graph and replay it K times; the capture calls
            the network three times more, and every row of a guided run takes 2 B samples. CUDA
            only.
        **knobs: further keyword arguments of the method, such as ``eta=1.0`` of `ddim`,
            ``variance="large"`` of `ancestral` (the model's by default) or ``order=3`` of
            `dpm_solver`; listed in `fastsample.samplers.registry`. A knob that one method alone
            takes selects it when `method` is "auto".

    Returns:
        ``(B, *shape)``.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, shapes that do not fit, or a network that returns NaN
            or infinity (the message names the row and time).
    """
    denoiser = as_denoiser(model, shape, schedule, "sample")
    request = PlanRequest(
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
    # torch.compile cannot trace the NumPy code of `resolve`. It is not disabled by a decorator,
    # because that would import torch's compiler, which takes 2 s, whenever this module is imported.
    resolve_untraced: Any = resolve
    if torch.compiler.is_compiling():
        resolve_untraced = torch.compiler.disable(resolve)  # pyright: ignore[reportUnknownMemberType]
    resolved: Resolved = resolve_untraced("sample", denoiser, request)
    plan, correct = resolved.plan, resolved.correct
    if callback is not None and not callable(callback):
        raise TypeError(f"sample: callback must be callable, got {callback!r}")
    sample_device = make_device("sample", device) or denoiser.device
    denoiser.check_device("sample", sample_device)
    batch = agreed_batch(num_samples, start, noise, cond, sample_index, seed)
    sample_dtype = make_dtype(dtype, start, denoiser)
    identity = make_identity("sample", seed, sample_index, batch, sample_device)
    conditions = Conditions("sample", cond, resolved.uncond, batch, sample_device)
    check_tensor("start", start, (batch, *denoiser.shape), sample_dtype, sample_device)
    check_tensor("noise", noise, (len(plan), batch, *denoiser.shape), sample_dtype, sample_device)

    inputs = [t for t in (start, noise, *conditions.tensors()) if t is not None]
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if ops.has_tangent(inputs):
        raise ValueError(
            "sample: start, noise and conditions must have no forward-mode tangent, got one; "
            "use reverse mode, or fastsample.sampling.loop.run"
        )
    if graph and (needs_grad or callback or noise is not None or correct):
        raise ValueError(
            "sample: graph must be False with gradients, a callback, explicit noise, "
            "guidance_rescale or threshold, got True"
        )

    def make_start() -> Tensor:
        if start is not None:
            return start if needs_grad else start.detach().clone()
        return ops.noise(identity.seeds, identity.index, denoiser.shape, dtype=sample_dtype)

    def checked(x: Tensor) -> Tensor:
        # The host waits for the device only here, after the loop.
        if batch and not torch.isfinite(x.detach()).all():
            raise_first_bad_row(denoiser, plan, make_start, identity, noise, conditions, correct)
        return x

    with torch.set_grad_enabled(needs_grad), progress_bar(progress, plan) as bar:

        def advance(*_: object) -> None:
            bar.update()

        x = make_start()
        if graph:
            return checked(
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
            in_place=not needs_grad,
            inference=not needs_grad,
            callback=callback,
            correct=correct,
            watch=advance if progress else None,
        )
        return checked(x)
