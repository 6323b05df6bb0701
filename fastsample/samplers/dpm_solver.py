"""DPM-Solver++: multistep solvers of the diffusion ODE and SDE for x0 prediction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsample._support.checks import FloatArray, check_bool
from fastsample.grids.grid import Grid
from fastsample.plans.plan import Plan
from fastsample.plans.rows import Clip, Prediction
from fastsample.samplers.compile import Last, compile_plan, grid_levels
from fastsample.samplers.exponential import check_order, half_log_snr_steps, phi, step_ratios
from fastsample.schedules.schedule import NoiseSchedule
from fastsample.schedules.transition import transition


def dpm_solver(
    schedule: NoiseSchedule,
    grid: Grid,
    *,
    order: int | None = None,
    stochastic: bool = False,
    lower_order_final: bool = True,
    corrected: bool = False,
    last: Last = "data",
    clip: Clip = None,
    prediction: Prediction = "epsilon",
) -> Plan:
    r"""Compile the plan of DPM-Solver++ multistep (1, 2M, 3M), or its stochastic form (SDE 2M).

    Lu et al. 2022, "DPM-Solver++" (arXiv:2211.01095): algorithm 2 for 2M, the SDE form of section
    5 in its midpoint type, and 3M as in the authors' code. With ``lambda = log(alpha / sigma)`` and
    ``h = lambda_s - lambda_t`` the second-order step is ``x_s = sigma_s / sigma_t x + alpha_s (1 -
    e^-h) (x0 + (x0 - x0') h / (2 h'))``, where x0' and h' belong to the row before. Order 1 is
    DDIM. 3M as published carries half of the second derivative that third order needs: its error
    falls as the square of the step, like that of 2M but from a smaller start; see `corrected`.

    The first row is first order, the second at most second. The last row goes to t = 0, where h is
    infinite: it is first order and lands on x0, as in diffusers with `final_sigmas_type="zero"`.
    From a start without any signal h is infinite too, and the row after it is first order again
    (diffusers puts alpha_bar = 2^-24 there instead).

    Args:
        schedule: noise levels; only alpha and sigma at the grid's times are read.
        grid: K times and the final 0.
        order: 1, 2 or 3, at most K; None is 2, or 1 for a single step.
        stochastic: solve the SDE, with noise in every row but the last; order 1 or 2. Order 1 is
            ancestral sampling with the small variance.
        lower_order_final: below 15 rows, hold the last row to first order and the row before it to
            second, as in the authors' code and diffusers.
        corrected: order 3 only: the whole second derivative, so that the error falls as the cube.
            The paper's code and diffusers do not do this.
        last: where the last row lands: "data" (t = 0), "first" (t = 1, Stable Diffusion's
            `set_alpha_to_one=False`) or a time; the grid's times at or below it are left out.
        clip: bound on |x0| in data units, a pair (lo, hi), or None.
        prediction: the quantity that the network predicts: "epsilon", "x0", "v" or "flow".

    Returns:
        A plan of K rows that looks back at ``order - 1`` earlier x0's.

    Raises:
        ValueError: for a value out of range, an order above K, a grid that starts above T, or an
            epsilon prediction where alpha is 0.
    """
    levels = nodes, alphas, sigmas = grid_levels("dpm_solver", schedule, grid, last)
    rows = len(nodes) - 1
    for name, value in (
        ("stochastic", stochastic),
        ("lower_order_final", lower_order_final),
        ("corrected", corrected),
    ):
        check_bool("dpm_solver", name, value)
    highest = check_order("dpm_solver", order, 2 if stochastic else 3, rows)
    if corrected and highest != 3:
        raise ValueError(f"dpm_solver: corrected must be False below order 3, got order {highest}")
    orders = np.minimum(highest, np.arange(1, rows + 1))
    if nodes[-1] == 0.0:
        orders[-1] = 1
    if lower_order_final and rows < 15:
        orders[-1] = 1
        orders[-2:-1] = np.minimum(orders[-2:-1], 2)

    pair = transition(alphas[1:], sigmas[1:], alphas[:-1], sigmas[:-1])
    h = half_log_snr_steps(pair)
    decay = sigmas[1:] / sigmas[:-1]
    if stochastic:  # e^{-2h} equals pair.snr_ratio
        a, d = decay * np.sqrt(pair.snr_ratio), np.sqrt(pair.posterior_variance)
        gain = alphas[1:] * (pair.variance / sigmas[:-1] ** 2)
    else:
        a, d = decay, np.zeros(rows)
        gain = -alphas[1:] * np.expm1(-h)

    # The step is x_s = a x + gain x0 + first D1 + second D2 + d z, D1 and D2 divided differences.
    third = orders == 3
    first = np.where(orders == 2, 0.5 * gain, 0.0)
    second = np.zeros(rows)
    first[third] = alphas[1:][third] * h[third] * phi(2, h[third])
    second[third] = alphas[1:][third] * h[third] * phi(3, h[third])
    if corrected:  # because D2 is half the second derivative
        second *= 2.0
    d1, d2 = _differences(step_ratios(h), third)
    newest, c1, c2 = (first * u + second * v for u, v in zip(d1, d2, strict=True))
    variant = "SDE, " if stochastic else "corrected, " if corrected else ""
    return compile_plan(
        "dpm_solver",
        schedule,
        levels,
        prediction=prediction,
        clip=clip,
        method=f"dpm_solver({variant}order={highest})",
        a=a,
        b=gain + newest,
        c1=c1,
        c2=c2,
        d=d,
    )


def _differences(
    ratio: FloatArray, third: npt.NDArray[np.bool_]
) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
    """Return the weights of the last three x0's in ``h D1`` and in ``h^2 D2``.

    D1 and D2 are the divided differences of x0 over lambda.

    Args:
        ratio: `(K,)` ``h / h'`` of each row and the one before.
        third: `(K,)` whether the row's D1 reads two earlier x0's. D2 holds for these rows alone.
    """
    older = ratio * np.append(0.0, ratio[:-1])  # h / h'', with h'' two rows before
    total = np.where(ratio + older > 0.0, ratio + older, 1.0)
    share = np.where(third, older / total, 0.0)
    curve = ratio * older / total
    d1 = (ratio * (1.0 + share), -ratio * (1.0 + share) - share * older, share * older)
    d2 = (curve * ratio, -curve * (ratio + older), curve * older)
    return d1, d2
