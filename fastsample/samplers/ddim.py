"""DDIM: its sampler, from deterministic to DDPM-like, and its inversion of data to noise."""

from __future__ import annotations

import numpy as np

from fastsample._support.checks import FloatArray, check_bool, check_real
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import (
    Clip,
    Prediction,
    check_prediction,
    clip_bounds,
    eps_terms,
    row_table,
    x0_terms,
)
from fastsample.samplers.compile import Last, Levels, compile_plan, grid_levels
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


def ddim(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    eta: float = 0.0,
    sigma_hat: bool = False,
    last: Last = "data",
    clip: Clip = None,
    rederive: bool = True,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of DDIM: deterministic at `eta=0`, DDPM-like at `eta=1`.

    Implements eq. (12) of Song et al. 2021, "Denoising Diffusion Implicit Models"
    (arXiv:2010.02502), for any alpha and sigma: ``x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d
    z`` with ``d`` equal to eta times the posterior standard deviation of the pair (s, t).

    Args:
        schedule: noise levels; only alpha and sigma at the grid's times are read.
        grid: K times and the final 0.
        eta: share of the posterior noise, in [0, 1], dimensionless.
        sigma_hat: draw the larger noise ``sigma_{t|s}`` around the mean of `eta=1` (appendix D.3),
            in every row but the last. It breaks the variance law on purpose. `eta` is not used
            then, and must be 0 or 1.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        rederive: take eps from the clipped x0, as improved-diffusion does; False keeps the
            network's own eps, as the DDIM repository and diffusers do. They differ only where
            clipping acts.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of K rows. With eta > 0 each draws noise, but not one that lands on data.

    Raises:
        ValueError: for a value out of range, a grid that starts above T, or an epsilon prediction
            where alpha is 0.
    """
    share = check_real("ddim", "eta", eta, 0.0, 1.0)
    check_bool("ddim", "sigma_hat", sigma_hat)
    check_bool("ddim", "rederive", rederive)
    if sigma_hat and share not in (0.0, 1.0):
        raise ValueError(f"ddim: eta must be 0 or 1 with sigma_hat=True, got {share:g}")
    check_prediction("ddim", prediction)
    levels = nodes, alphas, sigmas = grid_levels("ddim", schedule, grid, last)
    share = 1.0 if sigma_hat else share
    columns = _columns(
        prediction, alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:], share, rederive
    )
    if sigma_hat:
        pair = transition(alphas[1:], sigmas[1:], alphas[:-1], sigmas[:-1])
        columns["d"] = np.sqrt(pair.variance)
    if nodes[-1] == 0.0:
        columns["d"][-1] = 0.0
    knobs = "sigma_hat=True" if sigma_hat else f"eta={share}"
    return compile_plan(
        "ddim",
        schedule,
        levels,
        prediction=prediction,
        clip=clip,
        method=f"ddim({knobs})" if rederive else f"ddim({knobs}, rederive=False)",
        check="mean" if sigma_hat else "all",
        **columns,
    )


def ddim_pairs(
    schedule: NoiseSchedule,
    later: FloatArray,
    earlier: FloatArray,
    *,
    eta: float = 0.0,
    clip: Clip = None,
    rederive: bool = True,
    prediction: Prediction = "epsilon",
) -> FloatArray:
    """Return rows `(K, 15)` that lead from times to times, which need not follow on each other.

    `DDIMScheduler` of diffusers makes such rows for some lists of timesteps: it takes for granted
    that they are evenly spaced. They are no plan, since a row does not begin where the one before
    it ended.

    Args:
        schedule: noise levels.
        later: `(K,)` the times before the rows.
        earlier: `(K,)` the times after them, each below its partner, or equal for an identity.
        eta: as for `ddim`.
        clip: as for `ddim`.
        rederive: as for `ddim`.
        prediction: as for `ddim`.
    """
    alphas, sigmas = schedule.levels(later)
    columns = _columns(prediction, alphas, sigmas, *schedule.levels(earlier), eta, rederive)
    columns["d"][earlier == 0.0] = 0.0
    p, q = x0_terms("ddim", prediction, alphas, sigmas)
    low, high = clip_bounds("ddim", clip)
    return row_table(len(later), p=p, q=q, lo=low, hi=high, **columns)


def _columns(
    prediction: Prediction,
    alpha_t: FloatArray,
    sigma_t: FloatArray,
    alpha_s: FloatArray,
    sigma_s: FloatArray,
    share: float,
    rederive: bool,
) -> dict[str, FloatArray]:
    """Return the columns a, b, e and d of the rows that lead from levels t to levels s."""
    pair = transition(alpha_s, sigma_s, alpha_t, sigma_t)
    d = share * np.sqrt(pair.posterior_variance)
    # This equals sqrt(sigma_s^2 - d^2), written so that it loses no digits for eta near 1.
    keep = sigma_s * np.sqrt((1.0 - share**2) + share**2 * pair.snr_ratio)
    if rederive:
        a, b, e = keep / sigma_t, alpha_s - keep * alpha_t / sigma_t, np.zeros_like(keep)
    else:
        from_x, from_output = eps_terms("ddim", prediction, alpha_t, sigma_t)
        a, b, e = keep * from_x, alpha_s, keep * from_output
    return {"a": a, "b": b, "e": e, "d": d}


def ddim_inversion(
    schedule: NoiseSchedule, grid: Grid, *, prediction: Prediction = "epsilon"
) -> Plan:
    r"""Compile the plan that carries data to noise: deterministic DDIM, run backwards.

    Eq. (13) of Song et al. 2021 (arXiv:2010.02502) with the network called at the cleaner time s:
    ``x_t = alpha_t x0(x_s) + sigma_t eps(x_s)``. Data are fed as if they were x at the grid's first
    nonzero time, as in improved-diffusion's `ddim_reverse_sample`, since a network has no timestep
    for t = 0. It is not an exact inverse of sampling: the two agree to first order in the step.

    Args:
        schedule: noise levels.
        grid: K >= 2 times and the final 0, noisiest first like every grid.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of K - 1 rows whose nodes increase from the cleanest time to the noisiest.

    Raises:
        ValueError: for a grid of one step or one that starts above T, or an epsilon prediction
            where alpha is 0.
    """
    check_prediction("ddim_inversion", prediction)
    grid_levels("ddim_inversion", schedule, grid)
    if len(grid) < 2:
        raise ValueError(f"ddim_inversion: grid must hold at least 2 steps, got {len(grid)}")
    nodes = grid.times[-2::-1]
    levels = Levels(nodes, *schedule.levels(nodes))
    alphas, sigmas = levels.alphas, levels.sigmas
    # Take eps from the output: computing it from x and x0 would lose digits near the data.
    from_x, from_output = eps_terms("ddim_inversion", prediction, alphas[:-1], sigmas[:-1])
    return compile_plan(
        "ddim_inversion",
        schedule,
        levels,
        prediction=prediction,
        clip=None,
        method="ddim_inversion",
        a=sigmas[1:] * from_x,
        b=alphas[1:],
        e=sigmas[1:] * from_output,
    )
