"""The main job: `sample`, and its reverse, `invert`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fastsample import ops
from fastsample.arguments import (
    Steps,
    agreed_batch,
    check_tensor,
    make_dtype,
    make_grid,
    make_guidance,
    make_identity,
    make_plan,
)
from fastsample.conditioning import Conditions
from fastsample.denoiser import Denoiser
from fastsample.devices import make_device
from fastsample.graph import run_graph
from fastsample.grid import Grid
from fastsample.loading import as_denoiser
from fastsample.loop import Step, run
from fastsample.plan import Plan
from fastsample.rows import Clip
from fastsample.samplers import ddim_inversion
from fastsample.schedule import NoiseSchedule


def sample(
    model: Any,
    steps: Steps = 10,
    *,
    num_samples: int | None = None,
    method: Literal["ddim", "ancestral"] = "ddim",
    grid: str = "uniform",
    eta: float = 0.0,
    seed: int | Sequence[int] = 0,
    sample_index: int | Sequence[int] | Tensor | None = None,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    clip: Clip | Literal["auto"] = "auto",
    variance: Any = None,
    guidance: float | Sequence[float] | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    graph: bool = False,
) -> Tensor:
    """Draw samples in exactly K network calls.

    Sample i is the same in any batch, on any device and with any number of ranks, up to what the
    network itself computes: its noise is a function of (seed, index, row, element) alone.

    Without gradients, unless grad mode is on and `start`, `noise` or a condition requires grad;
    then the result is differentiable in it.

    Args:
        model: a `Denoiser`, or a callable ``(x, t) -> output`` with `shape` (epsilon prediction,
            network index t - 1; wrap it in a `Denoiser` for anything else).
        steps: K; or the times themselves (a `Grid`, or a list that ends at 0); or a whole `Plan`,
            which decides what `method`, `grid`, `eta`, `variance` and `clip` would: leave those.
        num_samples: how many; None is what `start`, `noise`, `cond`, `sample_index` or `seed` say,
            else 1.
        method: "ddim" or "ancestral".
        grid: how K times are spread when `steps` is a number: one of `fastsample.arguments.GRIDS`.
        eta: DDIM's share of fresh noise, in [0, 1]; 0 is deterministic.
        seed: 64-bit seed; a sequence gives each sample its own, with index 0.
        sample_index: global index of each sample, or of the first one; None counts from 0.
        start: x_T ``(B, *shape)`` instead of generated noise; it is not modified.
        noise: the steps' noise ``(K, B, *shape)`` instead of generated noise.
        shape: shape of one sample, for a bare callable.
        schedule: noise schedule for a bare callable; None is ``NoiseSchedule.linear()``.
        clip: range x0 is held in; "auto" is the model's own.
        variance: reverse variance of "ancestral"; None is the model's own.
        guidance: classifier-free guidance scale w in ``u + w (c - u)``, one or one per row; None
            is off. One network call then runs 2 B samples.
        cond: keyword arguments for the network, one entry per sample (or a number for all).
        uncond: the same for "no condition"; None is the model's own.
        device: where the samples live; None is where the model is. A module is not moved.
        dtype: dtype of the samples; None is that of `start`, else the model's. Step arithmetic is
            float32 (float64 for float64) in any case.
        progress: show a progress bar.
        callback: called after each row with a `Step` (row, time, x, x0).
        graph: capture network and step in a CUDA graph and replay it K times; the capture calls
            the network three times more. CUDA only.

    Returns:
        ``(num_samples, *shape)``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, shapes that do not fit, or a network that returns NaN
            or infinity (the message names the row and time).
    """
    denoiser = as_denoiser(model, shape, schedule, "sample")
    plan = make_plan(denoiser, steps, method, grid, eta, clip, variance)
    plan, absent = make_guidance(denoiser, plan, guidance, uncond)
    if callback is not None and not callable(callback):
        raise TypeError(f"sample: callback must be callable, got {callback!r}")
    place = make_device("sample", device) or denoiser.device
    denoiser.check_device("sample", place)
    batch = agreed_batch(num_samples, start, noise, cond, sample_index, seed)
    kind = make_dtype(dtype, start, denoiser)
    identity = make_identity(seed, sample_index, batch, place)
    conditions = Conditions("sample", cond, absent, batch, place)
    check_tensor("start", start, (batch, *denoiser.shape), kind, place)
    check_tensor("noise", noise, (len(plan), batch, *denoiser.shape), kind, place)

    given = [t for t in (start, noise, *conditions.arguments.values()) if isinstance(t, Tensor)]
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if ops.has_tangent(given):
        raise ValueError(
            "sample: start, noise and conditions must have no forward-mode tangent, got one; "
            "use reverse mode, or fastsample.loop.run"
        )
    if graph and (wants_grad or callback or noise is not None):
        raise ValueError(
            "sample: graph must be False with gradients, a callback or explicit noise, got True"
        )

    def starting() -> Tensor:
        if start is not None:
            return start if wants_grad else start.detach().clone()
        return ops.noise(identity.seeds, identity.index, denoiser.shape, dtype=kind)

    def finished(x: Tensor) -> Tensor:
        # The one wait for the device, after the loop.
        if batch and not torch.isfinite(x.detach()).all():
            _name_bad_row(denoiser, plan, starting, identity, noise, conditions)
        return x

    with torch.set_grad_enabled(wants_grad), _bar(progress, plan) as bar:
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
            watch=(lambda *_: bar.update()) if progress else None,
        )
        return finished(x)


def invert(
    model: Any,
    x0: Tensor,
    steps: int | Grid | Sequence[float] = 50,
    *,
    grid: str = "uniform",
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    cond: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Tensor:
    """Carry data to the noise that deterministic DDIM sampling would start from.

    DDIM inversion (Song et al. 2021, arXiv:2010.02502, eq. 13 and section 4.3): K - 1 network
    calls, each at the cleaner of the two times. ``sample(model, steps, start=invert(model, x0,
    steps))`` returns near x0, the nearer the more steps; x0 estimates are not clipped, which would
    break it.

    Args:
        model: as for `sample`.
        x0: data ``(B, *shape)``, floating, on the model's device.
        steps: K >= 2, or the times of the sampling run to be inverted.
        grid: as for `sample`.
        shape: as for `sample`; None is that of `x0`.
        schedule: as for `sample`.
        cond: keyword arguments for the network.
        progress: show a progress bar.

    Returns:
        x at the grid's noisiest time, ``(B, *shape)``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: fewer than 2 steps, shapes that do not fit, or a network that returns NaN.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"invert: x0 must be a floating tensor, got {got}")
    if isinstance(steps, Plan):
        raise TypeError("invert: steps must be a number, a Grid or times, got a Plan")
    shape = shape if isinstance(model, Denoiser) else shape or x0.shape[1:]
    denoiser = as_denoiser(model, shape, schedule, "invert")
    times = make_grid(denoiser, steps, grid, "invert")
    if len(times) < 2:
        raise ValueError(f"invert: steps must be at least 2, got {len(times)}")
    check_tensor("x0", x0, (x0.shape[0], *denoiser.shape), x0.dtype, denoiser.device, "invert")
    plan = ddim_inversion(denoiser.schedule, times, prediction=denoiser.prediction)
    conditions = Conditions("invert", cond, None, x0.shape[0], x0.device)
    with torch.no_grad(), _bar(progress, plan) as bar:
        x = run(
            denoiser,
            plan,
            x0.detach().clone(),
            conditions=conditions,
            in_place=True,
            inference=True,
            watch=lambda *_: bar.update(),
        )
        if not torch.isfinite(x).all():
            _name_bad_row(denoiser, plan, x0.clone, None, None, conditions, "invert")
    return x


def _bar(progress: bool, plan: Plan) -> tqdm:
    return tqdm(total=len(plan), disable=not progress, desc="sampling", unit="call")


def _name_bad_row(denoiser, plan, starting, identity, noise, conditions, function="sample") -> None:
    """Run again, looking after every row, and raise the error that names the first bad one."""

    def watch(k: int, output: Tensor, x: Tensor) -> None:
        for label, tensor in (("the model's output", output), ("x", x)):
            if not torch.isfinite(tensor).all():
                found = "NaN" if torch.isnan(tensor).any() else "infinity"
                raise ValueError(
                    f"{function}: {label} must be finite, got {found} in row {k} of {len(plan)} "
                    f"(t = {plan.times[k]:g})"
                )

    first = starting().detach().clone()
    if not torch.isfinite(first).all():
        given = "start" if function == "sample" else "x0"
        found = "NaN" if torch.isnan(first).any() else "infinity"
        raise ValueError(f"{function}: {given} must be finite, got {found}")
    with torch.no_grad():
        run(
            denoiser,
            plan,
            first,
            identity=identity,
            noise=noise,
            conditions=conditions,
            watch=watch,
        )
    raise ValueError(
        f"{function}: samples must be finite, got NaN or infinity that a second run did not show; "
        "the model is not deterministic"
    )
