"""UniPC: DPM-Solver++ as the predictor, with a corrector that costs no network call."""

from __future__ import annotations

import numpy as np

from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.compile import Last, compile_plan, grid_levels
from fastsample.samplers.exponential import check_order, half_log_snr_steps, phi, step_ratios
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


def unipc(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    order: int | None = None,
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of UniPC of order 1 or 2, with B2(h) = e^h - 1 and data prediction.

    Zhao et al. 2023, "UniPC" (arXiv:2302.04867), algorithms 5 and 6. It equals diffusers'
    `UniPCMultistepScheduler` with its defaults. Each network output first corrects the sample it
    was computed from, then predicts the next one. The corrected sample differs from the predicted
    one by a combination of the last three x0's alone, so that both fit in one row, which reads one
    earlier x0 more than the predictor would. (Order 3 would need a fourth x0.)

    The last row goes to t = 0 and lands on x0.

    Args:
        schedule: noise levels; only alpha and sigma at the grid's times are read.
        grid: K times and the final 0.
        order: 1 or 2, at most K; None is 2, or 1 for a single step.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A deterministic plan of K rows that looks back at `order` earlier x0's.

    Raises:
        ValueError: for a value out of range, an order above K, a grid that starts above T, or an
            epsilon prediction where alpha is 0.
    """
    levels = nodes, alphas, sigmas = grid_levels("unipc", schedule, grid, last)
    rows = len(nodes) - 1
    highest = check_order("unipc", order, 2, rows)
    second = np.minimum(highest, np.arange(1, rows + 1)) == 2
    second[-1] = False

    pair = transition(alphas[1:], sigmas[1:], alphas[:-1], sigmas[:-1])
    h = half_log_snr_steps(pair)
    a = sigmas[1:] / sigmas[:-1]
    gain = -alphas[1:] * np.expm1(-h)
    ratio = step_ratios(h)
    predict = np.where(second, 0.5 * ratio, 0.0)  # the same as DPM-Solver++ 2M

    # Row i > 0 first corrects x for the step before it: x + spread (h1 - h2) + pull (x0 - h1).
    # rho solves the paper's linear system for the points r_1 = -1 / back and r_2 = 1.
    before = np.where(np.isfinite(h[:-1]), h[:-1], 1.0)  # h[0] may be infinite
    b1 = phi(2, before) / phi(1, before)
    b2 = 2.0 * phi(3, before) / phi(1, before)
    back = ratio[:-1]
    rho = np.where(second[:-1], (b1 - b2) * back / (1.0 + back), 0.0)
    spread, pull = np.zeros(rows), np.zeros(rows)
    spread[1:] = gain[:-1] * (rho * back - predict[:-1])
    pull[1:] = gain[:-1] * np.where(second[:-1], b1 - rho, 0.5)
    return compile_plan(
        "unipc",
        schedule,
        levels,
        prediction=prediction,
        clip=clip,
        method=f"unipc(order={highest})",
        a=a,
        b=gain * (1.0 + predict) + a * pull,
        c1=a * (spread - pull) - gain * predict,
        c2=-a * spread,
    )
