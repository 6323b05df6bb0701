"""Cuts a resolved plan at a time, for `stop=`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastsample.denoiser.denoiser import Denoiser
from fastsample.sampling.guidance import Correction
from fastsample.sampling.resolve import PlanRequest, Resolved, resolve


def until(
    function: str, denoiser: Denoiser, request: PlanRequest, whole: Resolved, stop: float
) -> Resolved:
    """Return the plan that ends at a time: the first rows of the whole plan, or one made anew.

    Guidance is that of the whole plan's rows, whether the time is one of its nodes or not.

    Args:
        function: the caller's name, for messages.
        denoiser: the model.
        request: the arguments of the whole plan.
        whole: the whole plan.
        stop: the time.

    Raises:
        ValueError: a time outside the plan, or, for a given or tuned plan and for one whose rows
            return to noisier nodes, a time that is no node.
    """
    plan = whole.plan
    if not plan.nodes[-1] <= stop < plan.nodes[0]:
        raise ValueError(
            f"{function}: stop must be below the start at {plan.nodes[0]:g} and not below the "
            f"end at {plan.nodes[-1]:g}, got {stop:g}"
        )
    if stop in plan.nodes[1:]:
        return replace(whole, plan=plan.until(stop))
    if whole.method in ("given", "tuned") or np.any(np.diff(plan.nodes) > 0.0):
        raise ValueError(
            f"{function}: stop must be a node of the plan, one of {plan.nodes[1:].tolist()}, "
            f"got {stop:g}"
        )
    rows = int((plan.nodes[:-1] > stop).sum())
    unguided = resolve(function, denoiser, _shortened(request, rows, stop))
    cut = unguided.plan.with_guidance(plan.column("w")[:rows])
    correct = None
    if whole.correct is not None:
        threshold = whole.correct.threshold
        correct = Correction(function, cut, request.guidance_rescale, threshold)
        cut = correct.plan
    return replace(whole, plan=cut, correct=correct)


def _shortened(request: PlanRequest, rows: int, stop: float) -> PlanRequest:
    """Return the request for an unguided plan of so many rows that ends at a time.

    A multistep method that looks back further than there are rows is of lower order.
    """
    knobs = {**request.knobs, "last": stop}
    order, variance = knobs.get("order"), knobs.get("variance")
    if order is not None and order > rows:
        knobs["order"] = rows
        knobs.pop("corrected", None)  # which is for order 3 alone
    if variance is not None and not isinstance(variance, str):
        knobs["variance"] = np.asarray(variance)[:rows]
    return replace(
        request,
        knobs=knobs,
        guidance=None,
        guidance_interval=None,
        guidance_rescale=0.0,
        threshold=None,
    )
