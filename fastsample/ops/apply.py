"""The functions `step` and `step_x0`, which check their tensors and call the operators."""
# torch.autograd.Function.apply and forward_ad have no type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastsample.ops import library, native, reference
from fastsample.ops.autograd import StepFunction
from fastsample.ops.checks import check_step
from fastsample.ops.direct import is_plain


def step(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    *,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Do a whole sampler step on a batch in one kernel, with the coefficients in one row of a plan.

    All tensors are on one device. The step is differentiable, once, in ``x``, ``out``, ``rows``,
    ``uncond``, ``noise`` and ``h1`` to ``h4``. float32, bfloat16 and float16 compute in float32,
    float64 in float64.

    Args:
        x: current samples ``(B, *shape)``, contiguous or channels_last.
        out: model output, shape of ``x``, or ``(B, 2 * shape[0], ...)`` holding [prediction | v]
            when the variance is learned; the conditional output when ``uncond`` is given.
        rows: plan table ``(K, 15)`` float64, columns as `fastsample.plans.plan.COLUMNS`.
        row: row number, int64, one element or one per sample ``(B,)``. A number outside ``[0, K)``
            makes the result NaN.
        uncond: unconditional model output u, shape of ``out``: ``m = u + w (out - u)``.
        seeds: int64, one element or ``(B,)``, the bits of the 64-bit seed; with ``index``, turns on
            generated noise.
        index: int64 ``(B,)``, each sample's global index.
        draw: int64, one element or ``(B,)``: which of the sample's noises is generated
            (`fastsample.ops.draws`), of which the 32 lowest bits count; None is the row number.
        noise: shape and dtype of ``x``, used instead of generated noise.
        h1: x0 of the step before (multistep samplers), shape of ``x``, float32 (float64 for float64
            ``x``).
        h2: x0 of the step before that, as ``h1``.
        h3: x0 of the step before that, as ``h1``.
        h4: x0 of the step before that, as ``h1``.
        target: where to write the result (shape, dtype and strides of ``x``, may be ``x``, which
            must then share no memory with another operand); not differentiable.

    Returns:
        x_next ``(B, *shape)``. A row with ``d > 0`` and neither ``seeds`` nor ``noise`` gives NaN.

    Raises:
        TypeError: another dtype.
        ValueError: shapes or devices that do not match, or a target that cannot be written.

    `fastsample.plans.rows` has the whole formula of a row.

    Equivalent to this code for each sample, without a learned variance and earlier x0's::

        m = out if uncond is None else uncond + w * (out - uncond)
        x0 = (p * x + q * m).clamp(lo, hi)
        x_next = a * x + b * x0 + e * m
        if noise is not None:
            x_next = x_next + d * noise
    """
    check_step("step", x, out, rows, row, uncond, seeds, index, draw, noise, h1, h2, h3, h4)
    operands = (x, out, rows, row, uncond, seeds, index, draw, noise, h1, h2, h3, h4)
    if has_tangent(operands):
        if target is not None:
            raise ValueError("step: target must be None in forward mode, got a tensor")
        return reference.step(*operands)
    if _needs_gradient(operands):
        if target is not None:
            raise ValueError(
                "step: target must be None when a gradient is asked for, got a tensor; "
                "the backward pass needs x as it was"
            )
        return StepFunction.apply(*operands)[0]
    if target is None:
        return native.step(*operands) if is_plain(*operands) else library.step_op(*operands)
    if target is x:
        _write_step(x, operands)
        return x
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("step: target must not require grad, got one that does; it is overwritten")
    if target.shape != x.shape or target.dtype != x.dtype or target.stride() != x.stride():
        raise ValueError(
            f"step: target must have the shape, dtype and strides of x {tuple(x.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if target.device != x.device:
        raise ValueError(f"step: target must be on {x.device}, got {target.device}")
    if type(x) is Tensor and not torch.compiler.is_compiling():
        others = (x, out, uncond, noise, h1, h2, h3, h4)
        if any(other is not None and _overlaps(target, other) for other in others):
            raise ValueError(
                "step: target must be x or share no memory with the operands, got a mixture"
            )
    _write_step(target, operands)
    return target


def step_x0(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    *,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (x_next, x0): the result of `step`, and the row's clamped x0 ``(B, *shape)``.

    x0 has the dtype of `h1`: float32, or float64 for float64 ``x``. The arguments and errors are
    those of `step`.
    """
    check_step("step_x0", x, out, rows, row, uncond, seeds, index, draw, noise, h1, h2, h3, h4)
    operands = (x, out, rows, row, uncond, seeds, index, draw, noise, h1, h2, h3, h4)
    if has_tangent(operands):
        return reference.step_x0(*operands)
    if _needs_gradient(operands):
        return StepFunction.apply(*operands)
    return native.step_x0(*operands) if is_plain(*operands) else library.step_x0_op(*operands)


def _write_step(target: Tensor, operands: tuple[Any, ...]) -> None:
    """Write a step of checked operands to a target, and tell autograd that it was overwritten."""
    if is_plain(target, *operands):
        native.step_into(target, *operands)
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)
    else:
        library.step_into_op(target, *_without_trailing_nones(operands))


def _without_trailing_nones(operands: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Return the operands up to the last one: each further None costs the dispatcher 0.1 us."""
    count = len(operands)
    while operands[count - 1] is None:
        count -= 1
    return operands[:count]


def _needs_gradient(operands: Iterable[Tensor | None]) -> bool:
    """Return whether grad mode is on and an operand requires grad."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in operands)


def has_tangent(operands: Iterable[Tensor | None]) -> bool:
    """Return whether an operand has a forward-mode tangent, for which there is no kernel."""
    level = forward_ad._current_level  # pyright: ignore[reportPrivateUsage]  # no public name
    return level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in operands
    )


def _overlaps(target: Tensor, other: Tensor) -> bool:
    """Return whether two tensors share memory without being the same tensor."""
    first, second = target.data_ptr(), other.data_ptr()
    if first == second and target.shape == other.shape:
        return False
    return (
        first < second + other.numel() * other.element_size()
        and second < first + target.numel() * target.element_size()
    )
