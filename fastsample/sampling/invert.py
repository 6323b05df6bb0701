"""From data to noise: `invert`, along the rows of any deterministic plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import check_integer, check_real, warn_user
from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.wrap import as_denoiser
from fastsample.grids.grid import Grid
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS, eps_terms, output_terms, row_table, x0_terms
from fastsample.samplers.ddim import ddim_inversion
from fastsample.sampling.diagnosis import name_bad_row, progress_bar
from fastsample.sampling.fixed_point import fixed_point
from fastsample.sampling.loop import run
from fastsample.sampling.resolve import Wanted, resolve
from fastsample.schedules.schedule import NoiseSchedule

_SHARES = (1e-1, 1e-3, 1e-5)  # of the tolerance left to a row, until decoding meets it


def invert(
    model: Any,
    x0: Tensor,
    steps: int | Grid | Plan | Sequence[float] = 50,
    *,
    method: str = "auto",
    grid: str = "auto",
    tolerance: float | None = None,
    max_iterations: int = 30,
    shape: Sequence[int] | None = None,
    schedule: NoiseSchedule | None = None,
    cond: Mapping[str, Any] | None = None,
    progress: bool = False,
    **knobs: Any,
) -> Tensor:
    """Carry data to the noise that a deterministic sampler would start from.

    Without a tolerance: DDIM inversion (Song et al. 2021, arXiv:2010.02502, eq. 13 and section 4.3)
    along the plan's times, whatever its rows: K - 1 network calls, each at the cleaner time of two.
    ``sample(model, steps, start=invert(model, x0, steps), clip=None)`` returns near x0, the nearer
    the more steps.

    With a tolerance each row is undone exactly: the x_t that the row carries to x_s is the fixed
    point of ``x_t = alpha / X (x_s - ...) + (sigma - alpha E / X) eps(x_t)`` with (X, E) the row's
    weights of x0 and eps, iterated from x_s (as in Pan et al. 2023, "Effective Real Image Editing
    with Accelerated Iterative Diffusion Inversion", arXiv:2309.04907, with Anderson acceleration);
    near pure noise with x0 and eps exchanged. For plans that look back this is one step of an outer
    fixed point over all rows, and a sample then depends on its batch, within the tolerance. The
    result is decoded and compared with `x0`. Needs memory for about 2 K + 20 times the data.

    Args:
        model: as for `sample`.
        x0: data ``(B, *shape)``, floating, on the model's device.
        steps: K >= 2, or the times of the sampling run to be inverted, or its deterministic plan.
        method: as for `sample`, without the model's tuned plans; with its knobs a deterministic
            one.
        grid: as for `sample`.
        tolerance: largest ``|x0 - decoded|`` over all elements, in data units. None is plain DDIM
            inversion and promises nothing.
        max_iterations: of each fixed point, with a tolerance.
        shape: as for `sample`; None is that of `x0`.
        schedule: as for `sample`.
        cond: keyword arguments for the network.
        progress: show a progress bar.
        **knobs: as for `sample`.

    Returns:
        x at the plan's noisiest time, ``(B, *shape)``.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: fewer than 2 steps without a tolerance, a plan that draws noise, clips or is
            guided, shapes that do not fit, or a network that returns NaN.

    Warns:
        UserWarning: the tolerance was not reached; the message says how near it came.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"invert: x0 must be a floating tensor, got {got}")
    if x0.dim() < 2:
        raise ValueError(f"invert: x0 must have shape (B, *shape), got {tuple(x0.shape)}")
    shape = shape if isinstance(model, Denoiser) else shape or x0.shape[1:]
    denoiser = as_denoiser(model, shape, schedule, "invert")
    clip = "auto" if isinstance(steps, Plan) else None
    if isinstance(steps, Plan):
        _check_invertible(steps)
    plan = resolve("invert", denoiser, Wanted(steps, method, grid, clip, knobs)).plan
    _check_invertible(plan)
    check_tensor("x0", x0, (x0.shape[0], *denoiser.shape), x0.dtype, denoiser.device, "invert")
    conditions = Conditions("invert", cond, batch=x0.shape[0], device=x0.device)
    if tolerance is not None:
        bound = check_real("invert", "tolerance", tolerance)
        if bound <= 0.0:
            raise ValueError(f"invert: tolerance must be positive, got {bound:g}")
        limit = check_integer("invert", "max_iterations", max_iterations, 1)
        with torch.no_grad(), progress_bar(progress, None) as bar:
            return _solve(denoiser, plan, x0.detach(), conditions, bound, limit, bar.update)
    if len(plan) < 2:
        raise ValueError(f"invert: steps must be at least 2, got {len(plan)}")
    upward = ddim_inversion(denoiser.schedule, Grid(plan.nodes), prediction=denoiser.prediction)
    with torch.no_grad(), progress_bar(progress, upward) as bar:
        x = run(
            denoiser,
            upward,
            x0.detach().clone(),
            conditions=conditions,
            in_place=True,
            inference=True,
            watch=lambda *_: bar.update(),
        )
        if not torch.isfinite(x).all():
            name_bad_row(denoiser, upward, x0.clone, None, None, conditions, function="invert")
    return x


def _check_invertible(plan: Plan) -> None:
    """Refuse plans whose rows are not functions of x and the output alone, one to one."""
    if plan.is_stochastic:
        raise ValueError(f"invert: steps must be a deterministic plan, got {plan.method}")
    if plan.is_guided:
        raise ValueError("invert: steps must be a plan without guidance, got a guided one")
    if np.any(np.isfinite(plan.column("lo")) | np.isfinite(plan.column("hi"))):
        raise ValueError(
            "invert: steps must be a plan that does not clip x0, which loses it, "
            "got one that does; pass plan.with_clip(None)"
        )


def _solve(denoiser, plan, x0, conditions, tolerance, max_iterations, count) -> Tensor:
    """X at the noisiest time, row by row from the data upwards; decodes to `x0`."""
    timesteps = denoiser.network_times(plan.times, x0.device)
    table = torch.as_tensor(_pulling_rows(plan), dtype=ops.rows_dtype(x0.device), device=x0.device)
    batch = x0.shape[0]

    def network(y: Tensor, k: int) -> Tensor:
        with torch.inference_mode():
            output = denoiser.at_timestep(y, timesteps[k].expand(batch), conditions.arguments)
        count()
        return output

    def decoded(z: Tensor) -> tuple[Tensor, list[Tensor]]:
        estimates: list[Tensor] = []
        x = run(
            denoiser,
            plan,
            z.clone(),
            conditions=conditions,
            inference=True,
            callback=lambda step: estimates.append(step.x0),
        )
        count(len(plan))
        return x, estimates

    least, nearest, states = float("inf"), x0, []
    # Rows that look back are swept again and again, each time from near their fixed points.
    per_row = -(-max_iterations // 3) if plan.needs_history else max_iterations
    for share in _SHARES:

        def swept(estimates: list[Tensor], share: float = share) -> Tensor:
            nonlocal states
            states = _sweep(plan, table, network, x0, states, estimates, share * tolerance, per_row)
            return states[0]

        z = nearest if states and plan.needs_history else swept([])
        if plan.needs_history:
            z = fixed_point(lambda z: swept(decoded(z)[1]), z, share * tolerance, max_iterations)
        error = (decoded(z)[0] - x0).abs().max().item() if x0.numel() else 0.0
        if not np.isfinite(error):
            name_bad_row(denoiser, plan, z.clone, None, None, conditions, function="invert")
        improved = error < 0.7 * least
        if error < least:
            least, nearest = error, z
        if least <= tolerance:
            return nearest
        if not improved:
            break
    warn_user(
        f"invert: tolerance should be reached, but decoding is {least:.3g} away from x0, "
        f"{tolerance:g} asked for; use more steps, float64, or a larger tolerance"
    )
    return nearest


def _sweep(
    plan: Plan,
    table: Tensor,
    network: Callable[[Tensor, int], Tensor],
    x0: Tensor,
    states: list[Tensor],
    estimates: list[Tensor],
    tolerance: float,
    max_iterations: int,
) -> list[Tensor]:
    """The samples at every node, noisiest first; each row carries them on, the last to `x0`.

    Rows that look back at earlier x0's, unknown on the way up, take their distances from the row's
    own x0 out of the last sweep: at first none, which makes the rows first order.

    Args:
        plan: what to undo.
        table: its `_pulling_rows`, on the device.
        network: (x, row) -> output.
        x0: data.
        states: the last sweep's result, to start from; may be empty.
        estimates: x0 of each row when decoding the last sweep's result; may be empty.
        tolerance: of the fixed points.
        max_iterations: network calls per row.
    """
    kind, device = history_dtype(x0), x0.device
    found: list[Tensor] = []
    x = x0
    for k in reversed(range(len(plan))):
        fixed = x.to(kind)
        for lag, column in ((1, "c1"), (2, "c2")):
            weight = float(plan.column(column)[k])
            if weight and estimates:
                fixed = fixed - weight * (estimates[k - lag] - estimates[k])
        number = torch.tensor([k], device=device)

        def pulled(y: Tensor, k: int = k, number: Tensor = number, fixed=fixed) -> Tensor:
            return ops.step(y, network(y, k), table, number, h1=fixed)

        x = fixed_point(pulled, states[k] if states else x, tolerance, max_iterations)
        found.append(x)
    return found[::-1]


def _pulling_rows(plan: Plan) -> np.ndarray:
    """Rows that map (x_t, output there, x_s as h1) to the next guess of x_t."""
    c = {name: plan.column(name) for name in COLUMNS}
    alpha, sigma = plan.alphas[:-1], plan.sigmas[:-1]
    mx, me = output_terms(plan.prediction, alpha, sigma)
    x0_weight = c["a"] * alpha + c["b"] + c["e"] * mx + c["c1"] + c["c2"]
    eps_weight = c["a"] * sigma + c["e"] * me
    if np.any(x0_weight <= 0.0):
        k = int(np.argmin(x0_weight))
        raise ValueError(
            f"invert: steps must be a plan whose rows keep x0 to be undone, got {plan.method}, "
            f"row {k}, with weight {x0_weight[k]:.3g}"
        )
    # x_t = alpha x0 + sigma eps, with x0 out of the row's equation for x_s, or, where x_t is nearly
    # noise, with eps: eps(x_t) is then x_t itself whatever x_t, and every point would be fixed.
    noisy = alpha * x0_weight < 0.1 * sigma * eps_weight
    keep = np.divide(sigma, eps_weight, out=alpha / x0_weight, where=noisy)
    move = np.where(noisy, alpha - keep * x0_weight, sigma - keep * eps_weight)
    from_x, from_output = np.where(
        noisy,
        x0_terms("invert", plan.prediction, alpha, sigma),
        eps_terms("invert", plan.prediction, alpha, sigma),
    )
    return row_table(len(plan), a=move * from_x, e=move * from_output, c1=keep)
