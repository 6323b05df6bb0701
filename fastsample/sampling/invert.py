"""The function `invert`, which maps data to noise along any deterministic plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import check_integer, check_real
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.training_mode import warn_of_training_mode
from fastsample.denoiser.wrap import as_denoiser
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.samplers.ddim import ddim_inversion
from fastsample.sampling.diagnosis import call_counter, raise_first_bad_row
from fastsample.sampling.exact_inversion import invert_exactly
from fastsample.sampling.loop import run
from fastsample.sampling.resolve import PlanRequest, resolve, unconditional
from fastsample.schedules.schedule import NoiseSchedule


def invert(
    model: Any,
    x0: Tensor,
    steps: int | Grid | Plan | Sequence[float] = 50,
    *,
    method: str = "auto",
    grid: str = "auto",
    whole: bool = False,
    tolerance: float | None = None,
    max_iterations: int = 30,
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    cond: Mapping[str, Any] | None = None,
    uncond: Mapping[str, Any] | None = None,
    progress: bool = False,
    **knobs: Any,
) -> Tensor:
    """Return the noise from which a deterministic sampler reaches the given data.

    The plan is the one that `sample` runs with the same arguments, but without a clip range, which
    would lose x0: ``sample(model, steps, start=invert(model, x0, steps), clip=None)`` comes near
    `x0`, and nearer with more steps.

    Without a tolerance this is DDIM inversion (Song et al. 2021, arXiv:2010.02502, eq. 13 and
    section 4.3) along the plan's times, whatever its rows: K - 1 network calls, each at the cleaner
    of two times. Where the model's samples are at t = 1 (`Denoiser.last`), so are the data, and K
    calls are made.

    With a tolerance each row is inverted exactly, by fixed points; see
    `fastsample.sampling.exact_inversion`. The result is sampled from again and compared with `x0`.
    Plans that read earlier x0 again are solved for the whole batch, so that a sample depends on
    its batch within the tolerance. Needs memory for about 2 K + 20 times the data.

    With guidance both follow the guided output ``u + w (c - u)``, so that sampling with the same
    scales comes back to `x0`. Large scales make rows that are no contractions: plain DDIM
    inversion then misses by more, and a tolerance needs more iterations or more steps.

    Args:
        model: as for `sample`.
        x0: data ``(B, *shape)``, floating, on the model's device.
        steps: K >= 2, or the times of the sampling run to be inverted, or its deterministic plan.
        method: as for `sample`, but a deterministic method with its knobs.
        grid: as for `sample`.
        whole: as for `sample`.
        tolerance: largest ``|x0 - sample(...)|`` over all elements, in data units. None is plain
            DDIM inversion, without a bound.
        max_iterations: iterations of each fixed point, with a tolerance; at least 1.
        guidance: as for `sample`: one scale or one per row of the sampling plan, noisiest first.
        guidance_interval: as for `sample`.
        shape: as for `sample`; None is that of `x0`.
        schedule: as for `sample`.
        cond: keyword arguments for the network, one entry per sample or a number for all.
        uncond: as for `sample`.
        progress: show a progress bar.
        **knobs: as for `sample`.

    Returns:
        x at the plan's noisiest time, ``(B, *shape)``, in the dtype of `x0`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: fewer than 2 steps without a tolerance, a plan that draws noise or clips,
            shapes that do not fit, or a network that returns NaN.

    Warns:
        UserWarning: the tolerance was not reached; the message holds the largest difference.
    """
    _check_floating(x0)
    if x0.dim() < 2:
        raise ValueError(f"invert: x0 must have shape (B, *shape), got {tuple(x0.shape)}")
    shape = shape if isinstance(model, Denoiser) else shape or x0.shape[1:]
    denoiser = as_denoiser(model, shape, schedule, "invert")
    warn_of_training_mode("invert", denoiser.model)
    # A model's own plan, like its clip range, serves only if it does not clip, which loses x0.
    clip = "auto" if isinstance(steps, Plan) or denoiser.clip is None else None
    if isinstance(steps, Plan):
        _check_invertible(steps, denoiser)
    request = PlanRequest(
        *(steps, method, grid, clip, knobs),
        guidance=guidance,
        guidance_interval=guidance_interval,
        whole=whole,
        models_last=True,
    )
    plan = resolve("invert", denoiser, request).plan
    _check_invertible(plan, denoiser)
    uncond = unconditional("invert", denoiser, plan, uncond, asked=guidance is not None)
    check_tensor("x0", x0, (x0.shape[0], *denoiser.shape), x0.dtype, denoiser.device, "invert")
    conditions = Conditions("invert", cond, uncond, x0.shape[0], x0.device)
    if tolerance is not None:
        bound = check_real("invert", "tolerance", tolerance)
        if bound <= 0.0:
            raise ValueError(f"invert: tolerance must be positive, got {bound:g}")
        limit = check_integer("invert", "max_iterations", max_iterations, 1)
        with torch.no_grad(), call_counter(None, "inverting", show=progress) as count_calls:
            return invert_exactly(
                denoiser, plan, x0.detach(), conditions, bound, limit, on_calls=count_calls
            )
    if len(plan) < 2:
        raise ValueError(f"invert: steps must be at least 2, got {len(plan)}")
    # The upward rows start at the plan's last node above 0, where they call the network.
    ends_at_data = plan.nodes[-1] == 0.0
    grid_up = Grid(plan.nodes if ends_at_data else np.append(plan.nodes, 0.0))
    upward = ddim_inversion(denoiser.schedule, grid_up, prediction=denoiser.prediction)
    # An upward row calls the network at the node at which the sampling plan's row starts. No row
    # starts at the last node of a plan that ends above 0: its last row's scale is taken there.
    scales = plan.column("w")[::-1]
    upward = upward.with_guidance(
        scales[:-1] if ends_at_data else np.append(scales[:1], scales[:-1])
    )
    with torch.no_grad(), call_counter(upward.calls, "inverting", show=progress) as count_call:
        x = run(
            denoiser,
            upward,
            x0.detach().clone(),
            conditions=conditions,
            in_place=True,
            inference=True,
            count_call=count_call,
        )
        if not torch.isfinite(x).all():
            raise_first_bad_row(
                denoiser, upward, x0.clone, None, None, conditions, function="invert"
            )
    return x


def _check_floating(x0: Any) -> None:
    """Raise TypeError for data that are no floating tensor."""
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"invert: x0 must be a floating tensor, got {got}")


def _check_invertible(plan: Plan, denoiser: Denoiser) -> None:
    """Raise ValueError for a plan that draws noise, clips x0, or ends elsewhere than samples do."""
    if plan.is_stochastic:
        raise ValueError(f"invert: steps must be a deterministic plan, got {plan.method}")
    if not np.all(plan.calls_network):
        raise ValueError(
            "invert: steps must be a plan that calls the network in every row, got "
            f"{plan.calls} calls in {len(plan)} rows"
        )
    if plan.nodes[-1] not in (0.0, 1.0 if denoiser.last == "first" else 0.0):
        raise ValueError(
            f"invert: steps must be a plan that ends at data (t = 0), got t = {plan.nodes[-1]:g}"
        )
    if np.any(np.isfinite(plan.column("lo")) | np.isfinite(plan.column("hi"))):
        raise ValueError(
            "invert: steps must be a plan that does not clip x0, which loses it, "
            "got one that does; pass plan.with_clip(None)"
        )
