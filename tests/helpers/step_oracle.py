"""What a step must give, and how far rounding may take it from that.

The truth is `fastsample.ops.reference` in float64. The bound of an element follows from its own
terms, ``k eps (|a x| + |b x0| + |e m| + |c1 h1| + .. + |c4 h4| + |sd z|)``: the formula has at most
14 roundings of half an eps each along any path from an operand to the result, so k = 7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastsample import ops
from fastsample.ops import reference
from fastsample.plans.rows import COLUMNS
from tests.helpers.tensors import HISTORY

ROUNDINGS = 7.0
NOISE_TOLERANCE = 2e-6


class Truth(NamedTuple):
    """Float64 results on the CPU, and the bound of each element."""

    next: Tensor
    x0: Tensor
    next_bound: Tensor
    x0_bound: Tensor


def forward_and_backward(given: dict[str, Tensor]) -> list[Tensor]:
    """What the kernels make of these operands: x_next, x0, and the gradient of each operand."""
    x_next, x0 = ops.step_x0(**given)
    leaves = {
        name: t.detach().clone().requires_grad_() if t.is_floating_point() and name != "rows" else t
        for name, t in given.items()
    }
    wanted = [t for t in leaves.values() if t.requires_grad]
    # The results themselves as cotangents: some numbers that no device rounds in its own way.
    gradients = torch.autograd.grad(ops.step_x0(**leaves), wanted, (x_next, x0))
    return [x_next, x0, *gradients]


def widened(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.cpu().double() if t.is_floating_point() else t.cpu() for n, t in given.items()}


def truth(
    given: dict[str, Tensor], k: float = ROUNDINGS, noise_tolerance: float = NOISE_TOLERANCE
) -> Truth:
    """Of a step on operands of any dtype and device."""
    wide = widened(given)
    x_next, x0 = reference.step_x0(**wide)
    size = sizes(wide, x0)
    dtype = given["x"].dtype
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    x0_bound = k * eps * size["x0"]
    next_bound = k * eps * (size["mean"] + size["history"] + size["noise"])
    if "seeds" in given and "noise" not in given:
        next_bound = next_bound + noise_tolerance * size["deviation"]
    if dtype in (torch.bfloat16, torch.float16):
        # The result is rounded once more, float16 below its normal range to a fixed spacing.
        info = torch.finfo(dtype)
        next_bound = next_bound + 0.5 * info.eps * (x_next.abs() + next_bound)
        next_bound = next_bound + 0.5 * info.eps * info.smallest_normal
    return Truth(x_next, x0, next_bound, x0_bound)


def sizes(wide: dict[str, Tensor], x0: Tensor) -> dict[str, Tensor]:
    """Summed magnitudes of the terms that make x0, the mean, the history and the noise."""
    x, out = wide["x"], wide["out"]
    c = coefficients(wide)
    learned = out.shape != x.shape
    m, v = out.chunk(2, dim=1) if learned else (out, None)
    size_m = m.abs()
    if "uncond" in wide:
        u = wide["uncond"].chunk(2, dim=1)[0] if learned else wide["uncond"]
        size_m = u.abs() + c["w"].abs() * (m - u).abs()
    size_x0 = torch.maximum((c["p"] * x).abs() + c["q"].abs() * size_m, x0.abs())
    mean = (c["a"] * x).abs() + c["b"].abs() * size_x0 + c["e"].abs() * size_m
    history = torch.zeros_like(x)
    for n, name in enumerate(HISTORY):
        if name in wide:
            history = history + (c[f"c{n + 1}"] * wide[name]).abs()
    deviation, log_size = c["d"].expand_as(x), torch.zeros_like(x)
    if v is not None:
        log_variance = c["lv_lo"] + (v + 1) / 2 * (c["lv_hi"] - c["lv_lo"])
        # The exponent's absolute error is a relative one of its exponential.
        log_size = c["lv_lo"].abs() + (v.abs() + 1) / 2 * (c["lv_hi"] - c["lv_lo"]).abs()
        deviation = c["d"] * torch.exp(log_variance / 2)
    z = wide["noise"].abs() if "noise" in wide else torch.full_like(x, 7.0)  # generated: below 6.8
    noise = torch.where(deviation == 0, 0.0, deviation * (1 + log_size) * z)
    return {
        "x0": size_x0,
        "mean": mean,
        "history": history,
        "deviation": deviation * (1 + log_size),
        "noise": noise,
    }


def coefficients(wide: dict[str, Tensor]) -> dict[str, Tensor]:
    """The coefficients by name, shaped to broadcast over x."""
    rows = wide["rows"].index_select(0, wide["row"].reshape(-1))
    shape = (-1, *([1] * (wide["x"].dim() - 1)))
    return {name: c.reshape(shape) for name, c in zip(COLUMNS, rows.unbind(1), strict=True)}


def assert_within(got: Tensor, expected: Tensor, bound: Tensor, label: object = "") -> None:
    """Every element of `got` lies within its own bound of `expected`."""
    got = got.detach().cpu().double()
    assert got.shape == expected.shape, label
    excess = (got - expected).abs() - bound
    assert not excess.isnan().any(), label
    assert (excess <= 0).all(), f"{label}: past the bound by {excess.max():.3e}"
