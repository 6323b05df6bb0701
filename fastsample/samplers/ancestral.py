"""Ancestral sampling on any grid: DDPM and the strided sampling of Improved DDPM."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import check_vector
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Check, Clip, Prediction
from fastsample.samplers.compile import Last, compile_plan, grid_levels
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


def ancestral(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    variance: Literal["small", "large", "learned_range"] | npt.ArrayLike = "small",
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of ancestral (DDPM) sampling on any subset of the steps.

    The mean is that of the posterior q(x_s | x_t, x0): eq. (7) of Ho et al. 2020 (arXiv:2006.11239)
    with the pair (s, t) for two neighbouring steps, as in Nichol and Dhariwal 2021, "Improved
    Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), section 4, for any alpha and
    sigma: ``x_s = alpha_{t|s} sigma_s^2 / sigma_t^2 x + alpha_s sigma_{t|s}^2 / sigma_t^2 x0 + d
    z``.

    Args:
        schedule: noise levels; only alpha and sigma at the grid's times are read.
        grid: K times and the final 0.
        variance: ``d^2`` of each row: "small" is the posterior's (beta-tilde), "large" is
            ``sigma_{t|s}^2`` (beta); "learned_range" interpolates the logarithms of the two by the
            second half v of the network's output (Nichol and Dhariwal, eq. 15; v in [-1, 1], not
            clamped). An array `(K,)` of variances >= 0, noisiest first, must be 0 in a row that
            lands on data. All but "small" break the variance law on purpose.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of K rows. Each draws noise, but not one that lands on data.

    Raises:
        ValueError: for a value out of range, a grid that starts above T, or an epsilon prediction
            where alpha is 0.
    """
    levels = nodes, alphas, sigmas = grid_levels("ancestral", schedule, grid, last)
    pair = transition(alphas[1:], sigmas[1:], alphas[:-1], sigmas[:-1])
    rows = len(nodes) - 1
    d, lv_lo, lv_hi = np.zeros((3, rows))
    noisy = slice(rows - int(nodes[-1] == 0.0))  # the row that lands on data draws no noise
    check: Check = "mean"
    if isinstance(variance, str):
        if variance == "small":
            d[noisy] = np.sqrt(pair.posterior_variance[noisy])
            check = "all"
        elif variance == "large":
            d[noisy] = np.sqrt(pair.variance[noisy])
        elif variance == "learned_range":
            d[noisy] = 1.0
            lv_lo[noisy] = np.log(pair.posterior_variance[noisy])
            lv_hi[noisy] = np.log(pair.variance[noisy])
        else:
            raise ValueError(
                'ancestral: variance must be "small", "large", "learned_range" or an array, '
                f"got {variance!r}"
            )
        name = f'"{variance}"'
    else:
        d = _deviations(variance, rows, ends_at_data=nodes[-1] == 0.0)
        name = "array"
    share = (sigmas[1:] / sigmas[:-1]) ** 2
    return compile_plan(
        "ancestral",
        schedule,
        levels,
        prediction=prediction,
        clip=clip,
        method=f"ancestral(variance={name})",
        check=check,
        a=pair.alpha * share,
        b=alphas[1:] * (pair.variance / sigmas[:-1] ** 2),
        d=d,
        lv_lo=lv_lo,
        lv_hi=lv_hi,
    )


def _deviations(
    variance: npt.ArrayLike, num_steps: int, *, ends_at_data: bool
) -> npt.NDArray[np.float64]:
    """Check the variances `(K,)` of the steps and return their square roots."""
    values = check_vector("ancestral", "variance", variance)
    if values.shape != (num_steps,):
        raise ValueError(f"ancestral: variance must have shape ({num_steps},), got {values.shape}")
    if np.any(values < 0):
        raise ValueError(f"ancestral: variance must not be negative, got {values.min():g}")
    if ends_at_data and values[-1] != 0.0:
        # This also catches an array in the wrong order.
        raise ValueError(
            "ancestral: variance must be 0 in the last step, which lands on x0, "
            f"got {values[-1]:g}; order it noisiest first"
        )
    return np.sqrt(values)
