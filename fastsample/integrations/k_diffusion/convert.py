"""Rewrites the rows of a plan for samples of another scale and a network that returns x0."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastsample._support.checks import FloatArray
from fastsample.grids.sigmas import Convention, sigmas_of
from fastsample.integrations.k_diffusion.levels import schedule_up_to
from fastsample.plans.plan import COLUMNS, Plan
from fastsample.plans.rows import HISTORY, output_terms


def levels_of(
    function: str, alpha: FloatArray, sigma: FloatArray, convention: Convention
) -> tuple[FloatArray, FloatArray]:
    """Return (sigma, scale) of the same signal-to-noise ratios in the other program's samples.

    Args:
        function: the caller's name, for messages.
        alpha: signal levels `(n,)`.
        sigma: noise levels `(n,)`.
        convention: "ratio" for ``x = x0 + sigma eps``, "flow" for ``x = (1 - sigma) x0 + sigma
            eps``.

    Returns:
        The noise levels `(n,)`, and the factors `(n,)` of this package's samples.

    Raises:
        ValueError: no signal at all, where sigma would be infinite.
    """
    flow = convention == "flow"
    if not flow and np.any(alpha == 0.0):
        raise ValueError(
            f"{function}: levels must hold a signal at every node, got alpha = 0 at position "
            f"{int(np.argmin(alpha))}, where sigma would be infinite; start below T"
        )
    return sigmas_of(alpha, sigma, convention), 1.0 / (alpha + sigma if flow else alpha)


def falling_levels(levels: FloatArray) -> FloatArray:
    """Return the levels that are below all earlier ones: those of a plan without its returns."""
    before = np.append(np.inf, np.minimum.accumulate(levels)[:-1])
    return levels[levels < before]


class Rewritten(NamedTuple):
    """A plan for the other program's samples, and what its model is to be given."""

    plan: Plan
    input_scales: tuple[float, ...]
    """For each row, the factor of the samples on their way into the model. It is 1 but where the
    network is told another level than that of the samples: the model scales its input by the level
    that it is told, and the network inside is to see what it would see in this package."""


def for_x0_models(function: str, plan: Plan, convention: Convention) -> Rewritten:
    """Return a plan that does the same to the other program's samples, with x0 from the model.

    With the scale r of `levels_of`, a row ``x_s = a x + b x0 + e m + ... + d z`` becomes one of
    ``r x``: its a is divided by r before the row, and a, b, e, c and d are multiplied by r after
    it. The network's output m follows from the x0 that the other program's model returns, which
    computes it for the level that it is told.

    Args:
        function: the caller's name, for messages.
        plan: a plan of any schedule and prediction.
        convention: see `levels_of`.

    Raises:
        ValueError: a plan with guidance or learned variances, which the other program's model does
            not pass on; one that inverts; or one without a signal at a node.
    """
    if plan.is_guided:
        raise ValueError(
            f"{function}: plan must be without guidance, which the model does itself, got "
            f"{plan.method}; pass plan.with_guidance(1.0)"
        )
    if plan.learns_variance:
        raise ValueError(
            f"{function}: plan must not read learned variances, which the model does not return, "
            f"got {plan.method}"
        )
    if plan.inverts:
        raise ValueError(f"{function}: plan must run from noise to data, got {plan.method}")
    nodes, scale = levels_of(function, plan.alphas, plan.sigmas, convention)
    before, after = scale[:-1], scale[1:]
    told = not np.array_equal(plan.times, plan.nodes[:-1])
    alpha, sigma = _levels_told(function, plan) if told else (plan.alphas[:-1], plan.sigmas[:-1])
    times, scale_told = levels_of(function, alpha, sigma, convention)
    mx, me = output_terms(plan.prediction, alpha, sigma)
    # m = mx x0 + me eps with eps = (x - alpha x0) / sigma; at sigma = 0 none is called.
    per_eps = np.divide(me, sigma, out=np.zeros_like(me), where=sigma > 0.0)
    of_x0 = mx - per_eps * alpha
    column = {name: plan.column(name) for name in COLUMNS}
    p, q, a, e = (column[name] for name in ("p", "q", "a", "e"))
    # By the x0 law a row with a call estimates x0 from m alone now: p = 0, q = 1, exactly. The rows
    # of a plan that is free of the laws may not, and those whose network is told another level.
    lawful = plan.calls_network & (plan.check != "none" and not told)
    column["p"] = np.where(lawful, 0.0, (p + q * per_eps) / before)
    column["q"] = np.where(lawful, 1.0, q * of_x0)
    column["a"] = after * (a + e * per_eps) / before
    column["e"] = after * e * of_x0
    for name in ("b", "d", *HISTORY):
        column[name] = after * column[name]
    schedule = schedule_up_to(float(max(nodes.max(), times.max())), convention)
    rewritten = Plan(
        nodes,
        np.stack([column[name] for name in COLUMNS], axis=1),
        *schedule.levels(nodes),
        "x0",
        plan.method,
        "none" if told else plan.check,
        schedule,
        plan.provenance,
        times,
    )
    return Rewritten(rewritten, tuple((scale_told / before).tolist()))


def _levels_told(function: str, plan: Plan) -> tuple[FloatArray, FloatArray]:
    """Return (alpha, sigma) at the times that the network is told."""
    if plan.schedule is not None:
        return plan.schedule.levels(plan.times)
    if np.array_equal(plan.nodes, plan.sigmas) and np.all(plan.alphas == 1.0):
        # A plan for an `exploding` schedule, which was taken out of it.
        return np.ones_like(plan.times), plan.times
    raise ValueError(
        f"{function}: plan must have a schedule where its times are not its nodes, got None"
    )
