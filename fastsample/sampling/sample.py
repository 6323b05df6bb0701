"""The function `sample`, which draws samples: the main function of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample.denoiser.threshold import Threshold
from fastsample.plans.rows import Clip
from fastsample.sampling.loop import Step
from fastsample.sampling.resolve import PlanRequest, Steps
from fastsample.sampling.sampler import Sampler
from fastsample.schedules.schedule import NoiseSchedule


def sample(
    model: Any,
    steps: Steps | None = None,
    *,
    num_samples: int | None = None,
    method: str = "auto",
    grid: str = "auto",
    grid_seed: int | None = None,
    whole: bool = False,
    seed: int | Sequence[int] | torch.Generator | None = None,
    sample_index: int | Sequence[int] | Tensor | None = None,
    start: Tensor | None = None,
    noise: Tensor | None = None,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    clip: Clip | Literal["auto"] = "auto",
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    threshold: Threshold | Literal["auto"] | None = "auto",
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    stop: float | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
    return_states: bool = False,
    graph: bool = False,
    batch_size: int | None = None,
    **knobs: Any,
) -> Tensor:
    """Draw samples ``(B, *shape)`` in exactly K network calls.

    Sample i is the same in any batch, on any device and with any number of ranks, up to the
    network's own rounding: its noise is a function of (seed, sample index, row, element) alone.

    The plans of the last calls are remembered by their arguments. To plan once and for all, make a
    `Sampler`, of which this function is the one-line form.

    Gradients are computed only if grad mode is on and `start`, `noise` or a condition requires
    grad; the result is then differentiable in those.

    Args:
        model: a `Denoiser`, or a callable ``(x, t) -> output`` with `shape` (epsilon prediction,
            network index t - 1; wrap it in a `Denoiser` for anything else).
        steps: the number K of network calls (grids of other libraries, see `grid`, may hold
            another number of times); or the times themselves (a `Grid`, or a list that ends at 0);
            or a whole `Plan`, which goes without `method`, its knobs, `grid` and `clip`. None is
            10, or with `variances` or `noise_levels` the length of that list.
        num_samples: number of samples B; None takes it from `start`, `noise`, `cond`,
            `sample_index` or `seed`, and is 1 without them.
        method: the sampler, one of `fastsample.samplers.registry.METHODS`. "auto" is the plan that
            was tuned for this model and number of steps (`Denoiser.with_plans`), if there is one
            and neither times, knobs nor guidance are passed; else the one method that takes the
            knobs, else the default method (`fastsample.sampling.resolve.resolve`).
        grid: how K times are spread when `steps` is a number: one of
            `fastsample.grids.registry.GRIDS`; or "random", drawn from `grid_seed`; or "auto", the
            best for the model's profile (`Denoiser.with_profile`), and the method's default grid
            without one. Methods that choose their times take no grid.
        grid_seed: seed of the times of ``grid="random"``.
        whole: whether the network takes whole times only, as one that looks them up in a table
            does. Times are then rounded and repeats dropped, so that there may be fewer calls than
            `steps`. The rows of a plan, or of a method that chooses its times, stay as they are,
            and only the timesteps of the network are rounded.
        seed: 64-bit seed, or one per sample ``(B,)``, in which case every sample has index 0; or a
            generator, from which a seed is drawn. None draws a fresh one (`new_seed`) from torch's
            CPU generator, so that two calls differ and ``torch.manual_seed`` governs.
        sample_index: global index of each sample ``(B,)``, or of the first one; None counts from 0.
        start: x_T ``(B, *shape)`` instead of generated noise; it is not modified.
        noise: the noise of the rows ``(K', B, *shape)`` instead of generated noise; K' is the
            number of rows that are run, which is K unless rows make no network call.
        shape: shape of one sample, for a bare callable.
        schedule: noise schedule for a bare callable; None is ``NoiseSchedule.linear()``.
        clip: range that x0 is clamped to, in data units: a bound on |x0|, a pair (lo, hi), or None
            for no clamp; "auto" is the model's.
        guidance: classifier-free guidance scale w in ``u + w (c - u)`` (Ho & Salimans 2022,
            arXiv:2207.12598), one or one per row of the whole plan; None is off. A network call in
            a row of another scale than 1 runs 2 B samples.
        guidance_interval: times (low, high); rows from nodes ``low < t <= high`` are guided
            (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        guidance_rescale: weight in [0, 1] of scaling the guided output to the standard deviation of
            the conditional one (Lin et al. 2023, arXiv:2305.08891).
        threshold: quantile in (0, 1] of dynamic thresholding (Saharia et al. 2022,
            arXiv:2205.11487), 0.995 in the paper, or (quantile, largest bound), as in diffusers;
            needs a clip bound. None is off: x0 is clamped. "auto" is the model's, but off with a
            `clip` of your own, a `Plan` or a tuned plan.
        cond: keyword arguments for the network, one entry per sample (or a number for all).
        uncond: the same arguments for "no condition"; None is the model's.
        device: device of the samples; None is the model's. A module is not moved.
        dtype: dtype of the samples; None is that of `start`, else the model's. Step arithmetic is
            float32 (float64 for float64) in any case, and the network is called in its own dtype.
        stop: time to stop at, and to return the samples of. At a node of the plan the run
            ends there; at another time the last row goes to it.
        progress: show a progress bar of the network calls.
        callback: called after each row with a `Step` (row, time, x, x0), in each run of
            `batch_size` samples.
        return_states: return the states of the whole run instead of its result.
        graph: capture network and kernel in a CUDA graph and replay it; the capture calls the
            network twice more, and every row of a guided run takes 2 B samples. A `Sampler` keeps
            its graphs for later calls. CUDA only.
        batch_size: samples per run; more are drawn in several runs, with the same results. None
            runs all samples at once.
        **knobs: further keyword arguments of the method, such as ``eta=1.0`` of `ddim`,
            ``variance="large"`` of `ancestral` or ``order=3`` of `dpm_solver`; listed in
            `fastsample.samplers.registry`. `variance` and `last` are the model's by default. A knob
            that one method alone takes selects it when `method` is "auto".

    Returns:
        ``(B, *shape)``; with `return_states` ``(K' + 1, B, *shape)``: the start, and the samples
        after each row.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, shapes that do not fit, or a network that returns NaN
            or infinity (the message names the row and time).

    Warns:
        UserWarning: no `start`, and times that begin where samples are mostly data, such as those
            of another schedule.
    """
    request = PlanRequest(
        steps,
        method,
        grid,
        clip,
        knobs,
        grid_seed,
        guidance,
        guidance_interval,
        guidance_rescale,
        threshold,
        whole=whole,
        models_last=True,
    )
    sampler = Sampler.from_request(
        "sample", model, request, shape, schedule, uncond, device, dtype, graph, batch_size
    )
    return sampler(
        num_samples,
        seed=seed,
        sample_index=sample_index,
        start=start,
        noise=noise,
        cond=cond,
        stop=stop,
        progress=progress,
        callback=callback,
        return_states=return_states,
    )
