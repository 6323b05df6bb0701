"""Shortcut MCMC: each step estimates x0, then adds fresh noise."""

from __future__ import annotations

import numpy as np

from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.compile import Last, compile_plan, grid_levels
from fastsample.schedules.schedule import NoiseSchedule


def shortcut(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of shortcut MCMC: ``x_s = alpha_s x0 + sigma_s z``, fresh noise each row.

    Eq. (8) of Chen 2023 (arXiv:2301.01206), the DDIM family at its largest noise ``d = sigma_s``,
    which consistency models sample with too. The paper draws the times at random: pass
    ``grids.random(T, K, seed)``. Its marginals are those of the forward process only if x0 is a
    posterior sample; with a denoiser's mean the samples come out too concentrated, the more so the
    fewer the steps. No number of steps cures this: Gaussian data keep at most half their variance.

    Args:
        schedule: noise levels; only alpha and sigma at the grid's times are read.
        grid: K times and the final 0. The paper's "K = 10" makes 11 network calls: K is 11 here.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of K rows. Each draws noise, but not one that lands on data.

    Raises:
        ValueError: for a grid that starts above T, or an epsilon prediction where alpha is 0.
    """
    levels = grid_levels("shortcut", schedule, grid, last)
    return compile_plan(
        "shortcut",
        schedule,
        levels,
        prediction=prediction,
        clip=clip,
        method="shortcut",
        a=np.zeros(len(levels.nodes) - 1),
        b=levels.alphas[1:],
        d=levels.sigmas[1:],
    )
