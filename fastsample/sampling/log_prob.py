"""The function `log_prob`: the log density of noisy rows, for policy-gradient fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample import ops
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.fit import check_plan
from fastsample.ops.dtypes import history_dtype, rows_dtype
from fastsample.plans.plan import Plan
from fastsample.plans.rows import COLUMNS
from fastsample.sampling.history import History, earlier_x0s
from fastsample.sampling.mixed_rows import Numbers, RowTable, check_samples, numbers_of
from fastsample.sampling.resolve import unconditional

_D = COLUMNS.index("d")
_NOISE_ONLY = [COLUMNS.index(name) for name in ("p", "q", "a", "b", "e", "c1", "c2", "c3", "c4")]


def log_prob(
    denoiser: Denoiser,
    plan: Plan,
    x: Tensor,
    x_next: Tensor,
    row: int | Sequence[int] | Tensor,
    cond: Mapping[str, Any] | None = None,
    history: History | Sequence[Tensor] | None = None,
    *,
    uncond: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return the log density of the steps from `x` to `x_next`, differentiable in the weights.

    A row that draws noise is a Gaussian with the mean and standard deviation that the row gives
    (`fastsample.plans.rows`): a step of a policy. DDPO (Black et al. 2023, arXiv:2305.13301,
    eq. 4) and Flow-GRPO (Liu et al. 2025, arXiv:2505.05470) fine-tune a network by ratios or
    gradients of these densities, weighted by a reward of the final samples. One network call per
    call of this function, of twice the samples if a row is guided.

    Mean and standard deviation come from the sampler's own kernels, in float32 (float64 for float64
    samples). The gradient reaches the weights, `x`, `x_next`, `history` and floating conditions, in
    first derivatives. Where x0 is clamped, none flows through it.

    Args:
        denoiser: the model.
        plan: the plan with which `x_next` was drawn, from noise to data.
        x: samples before the row, ``(B, *shape)``.
        x_next: samples after it, in the shape of `x`.
        row: the row, one for all samples or one per sample, 0 is the noisiest. It must draw noise.
        cond: keyword arguments of the network, one entry per sample.
        history: the x0's of earlier rows, which rows of multistep plans read: a `History`, or
            tensors ``(B, *shape)``, newest first.
        uncond: conditions that mean "no condition", for guided rows; None is the model's.

    Returns:
        ``(B,)`` log densities in nats, summed over the elements of a sample, in float64 (float32
        on devices without it): the difference of two sums is a ratio's logarithm.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a row without noise, a missing history, shapes that do not fit, or a plan that
            does not fit the model.
    """
    name = "log_prob"
    if not isinstance(denoiser, Denoiser):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: denoiser must be a Denoiser, got {type(denoiser).__name__}")
    if not isinstance(plan, Plan):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: plan must be a Plan, got {type(plan).__name__}")
    check_plan(name, "plan", denoiser, plan)
    x = check_samples(name, "x", x, denoiser)
    x_next = check_samples(name, "x_next", x_next, denoiser)
    if x_next.shape != x.shape or x_next.device != x.device:
        raise ValueError(
            f"{name}: x_next must have the shape and device of x, {tuple(x.shape)} on {x.device}, "
            f"got {tuple(x_next.shape)} on {x_next.device}"
        )
    table = RowTable.of([plan], [denoiser], x.device)
    numbers = numbers_of(name, "row", row, x.shape[0])
    numbers = table.numbers(name, numbers, np.zeros_like(numbers))
    for number in numbers[~table.noisy[numbers]]:
        raise ValueError(
            f"{name}: row must draw noise, got row {number} of {plan.method}, which draws none and "
            f"has no density; the rows with noise are {np.flatnonzero(table.noisy).tolist()}"
        )
    earlier = earlier_x0s(name, history, x, table.looks_back[numbers])
    if uncond is not None and not plan.is_guided:
        raise ValueError(
            f"{name}: uncond must be left out with a plan without guided rows, got {uncond!r:.80}; "
            "plan.with_guidance sets their scales"
        )
    uncond = unconditional(name, denoiser, plan, uncond, asked=False)
    guided = bool(table.guided[numbers].any())
    conditions = Conditions(name, cond, uncond if guided else None, x.shape[0], x.device)
    output, unguided = table.call(denoiser, x, numbers, conditions)

    dtype = history_dtype(x)
    wide = [None if t is None else t.to(dtype) for t in (x, output, unguided, *earlier)]
    mean, deviation = _gaussian(plan, numbers, *wide)
    z = (x_next.to(dtype) - mean) / deviation
    # Sums in float64: the ratio of two densities is the difference of two large numbers.
    total = (0.5 * z.square() + deviation.log()).flatten(1).sum(1, dtype=rows_dtype(x.device))
    return -total - 0.5 * math.log(2.0 * math.pi) * math.prod(denoiser.shape)


def _gaussian(
    plan: Plan,
    numbers: Numbers,
    x: Tensor | None,
    output: Tensor | None,
    uncond: Tensor | None,
    *earlier: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of the rows, both `(B, *shape)`.

    Both come from the operator of a step: the mean from rows without their noise, the deviation
    from rows with nothing but their noise, which is 1 in every element.

    Args:
        plan: the rows.
        numbers: `(B,)` the row of each sample.
        x: samples `(B, *shape)`.
        output: the network's output for them.
        uncond: the unconditional output, or None.
        *earlier: h1 to h4.
    """
    assert x is not None
    assert output is not None
    mean_rows, noise_rows = np.array(plan.rows), np.array(plan.rows)
    mean_rows[:, _D] = 0.0
    noise_rows[:, _NOISE_ONLY] = 0.0
    dtype, device = rows_dtype(x.device), x.device
    place = torch.as_tensor(numbers, device=x.device)
    h1, h2, h3, h4 = earlier
    mean = ops.step(
        *(x, output, torch.as_tensor(mean_rows, dtype=dtype, device=device), place),
        **{"uncond": uncond, "h1": h1, "h2": h2, "h3": h3, "h4": h4},
    )
    ones = torch.ones_like(x)
    rows = torch.as_tensor(noise_rows, dtype=dtype, device=device)
    return mean, ops.step(torch.zeros_like(x), output, rows, place, noise=ones)
