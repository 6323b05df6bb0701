"""Inverts a deterministic plan to a tolerance, by solving a fixed-point equation for each row.

A row carries x_t to x_s. With (X, E) the row's weights of x0 and eps, the x_t that it carries to a
known x_s is the fixed point of

    x_t = alpha / X (x_s - ...) + (sigma - alpha E / X) eps(x_t)

iterated from x_s (as in Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative
Diffusion Inversion", arXiv:2309.04907, here with Anderson acceleration). Near pure noise x0 and eps
change places. Rows that read earlier x0 again need the x0 of noisier rows, which are not known on
the way from data to noise: for such plans one pass over all rows is one step of an outer fixed
point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample._support.checks import FloatArray, warn_user
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.ops.dtypes import history_dtype
from fastsample.plans.plan import Plan
from fastsample.plans.rows import (
    COLUMNS,
    HISTORY,
    eps_terms,
    output_terms,
    row_table,
    x0_terms,
)
from fastsample.sampling.diagnosis import raise_first_bad_row
from fastsample.sampling.fixed_point import fixed_point
from fastsample.sampling.loop import run

# The errors of the rows add up, so each attempt allows a row a smaller fraction of the tolerance,
# until the decoded samples meet it.
_ROW_FRACTIONS = (1e-1, 1e-3, 1e-5)


def invert_exactly(
    denoiser: Denoiser,
    plan: Plan,
    x0: Tensor,
    conditions: Conditions,
    tolerance: float,
    max_iterations: int,
    on_calls: Callable[[int], object] | None,
) -> Tensor:
    """Return the x at a plan's noisiest time from which the plan reaches `x0`.

    Args:
        denoiser: the model.
        plan: a deterministic plan without clipping, guided or not.
        x0: data `(B, *shape)`.
        conditions: extra arguments of the network; with the unconditional ones for a guided plan.
        tolerance: largest distance of the decoded samples from `x0` over all elements.
        max_iterations: iterations of each fixed point.
        on_calls: called with numbers of network calls as they are made, if given.

    Returns:
        `(B, *shape)`: the attempt that decodes nearest to `x0`.

    Raises:
        ValueError: a plan with a row that loses x0, or a network that returns NaN.

    Warns:
        UserWarning: the tolerance was not reached.
    """
    timesteps = denoiser.network_times(plan.times, x0.device)
    rows = _fixed_point_rows(plan)
    table = torch.as_tensor(rows, dtype=ops.rows_dtype(x0.device), device=x0.device)
    batch = x0.shape[0]
    guided: list[bool] = (plan.column("w") != 1.0).tolist()

    def network(y: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        # As in a run, a row whose scale is 1 needs no unconditional output.
        inputs = conditions if guided[k] else conditions.conditional
        count = 2 * batch if inputs.guided else batch
        with torch.inference_mode():
            output = denoiser.at_timestep(
                inputs.doubled(y), timesteps[k].expand(count), inputs.arguments
            )
        if on_calls:
            on_calls(1)
        return inputs.split(output)

    def decoded(z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the samples from starting noise z, and the x0 estimate of every row."""
        estimates: list[Tensor] = []
        x = run(
            denoiser,
            plan,
            z.clone(),
            conditions=conditions,
            inference=True,
            callback=lambda step: estimates.append(step.x0),
        )
        if on_calls:
            on_calls(plan.calls)
        return x, estimates

    least, nearest = float("inf"), x0
    states: list[Tensor] = []
    # With an outer fixed point each pass starts near the rows' solutions: fewer iterations suffice.
    per_row = -(-max_iterations // 3) if plan.needs_history else max_iterations
    for fraction in _ROW_FRACTIONS:
        row_tolerance = fraction * tolerance

        def swept(estimates: list[Tensor], row_tolerance: float = row_tolerance) -> Tensor:
            nonlocal states
            states = _sweep(plan, table, network, x0, states, estimates, row_tolerance, per_row)
            return states[0]

        z = nearest if states and plan.needs_history else swept([])
        if plan.needs_history:
            z = fixed_point(lambda z: swept(decoded(z)[1]), z, row_tolerance, max_iterations)
        error = float((decoded(z)[0] - x0).abs().max()) if x0.numel() else 0.0
        if not np.isfinite(error):
            raise_first_bad_row(denoiser, plan, z.clone, None, None, conditions, function="invert")
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
    network: Callable[[Tensor, int], tuple[Tensor, Tensor | None]],
    x0: Tensor,
    states: list[Tensor],
    estimates: list[Tensor],
    tolerance: float,
    max_iterations: int,
) -> list[Tensor]:
    """Return x before each row, noisiest first, by undoing the rows from data to noise once.

    The samples before a row are those that the row carries to the samples before the next row; the
    last row carries its samples to `x0`. For rows that read earlier x0 again, the differences of
    those from the row's own x0 are taken from `estimates`; without estimates they count as 0,
    which makes the rows first order.

    Args:
        plan: the plan to invert.
        table: its `_fixed_point_rows`, on the device.
        network: ``(x, row) -> (output, unconditional output or None)``.
        x0: data.
        states: the result of the previous pass, to start from; may be empty.
        estimates: x0 of each row when the previous result was decoded; may be empty.
        tolerance: tolerance of the fixed points.
        max_iterations: network calls per row.
    """
    dtype, device = history_dtype(x0), x0.device
    upwards: list[Tensor] = []
    x = x0
    for k in reversed(range(len(plan))):
        target = x.to(dtype)
        for lag, column in enumerate(HISTORY, 1):
            weight = float(plan.column(column)[k])
            if weight and estimates:
                target = target - weight * (estimates[k - lag] - estimates[k])
        number = torch.tensor([k], device=device)

        def next_guess(
            y: Tensor, k: int = k, number: Tensor = number, target: Tensor = target
        ) -> Tensor:
            output, unconditional = network(y, k)
            return ops.step(y, output, table, number, uncond=unconditional, h1=target)

        x = fixed_point(next_guess, states[k] if states else x, tolerance, max_iterations)
        upwards.append(x)
    return upwards[::-1]


def _fixed_point_rows(plan: Plan) -> FloatArray:
    """Return rows `(K, 15)` that map (x_t, output at x_t, x_s as h1) to the next guess of x_t."""
    c = {name: plan.column(name) for name in COLUMNS}
    alpha, sigma = plan.alphas[:-1], plan.sigmas[:-1]
    mx, me = output_terms(plan.prediction, alpha, sigma)
    x0_weight = c["a"] * alpha + c["b"] + c["e"] * mx + sum(c[name] for name in HISTORY)
    eps_weight = c["a"] * sigma + c["e"] * me
    if np.any(x0_weight <= 0.0):
        k = int(np.argmin(x0_weight))
        raise ValueError(
            f"invert: steps must be a plan whose rows keep x0 to be undone, got {plan.method}, "
            f"row {k}, with weight {x0_weight[k]:.3g}"
        )
    # This is x_t = alpha x0 + sigma eps, x0 eliminated by the row's equation for x_s. Where x_t is
    # nearly noise, eps is eliminated instead: there eps(x_t) is nearly x_t for every x_t, so that
    # every point would be a fixed point.
    noisy = alpha * x0_weight < 0.1 * sigma * eps_weight
    keep = np.divide(sigma, eps_weight, out=alpha / x0_weight, where=noisy)
    move = np.where(noisy, alpha - keep * x0_weight, sigma - keep * eps_weight)
    terms: Any = np.where(
        noisy,
        x0_terms("invert", plan.prediction, alpha, sigma),
        eps_terms("invert", plan.prediction, alpha, sigma),
    )
    from_x, from_output = terms
    return row_table(len(plan), w=c["w"], a=move * from_x, e=move * from_output, c1=keep)
