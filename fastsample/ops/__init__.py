"""The native kernels as PyTorch operators: where torch and `fastsample._native` meet.

Operators are declared once (`torch.library.Library.define`), functional, with fakes, and
implemented for CPU and CUDA by the kernels, for devices without a kernel by
`fastsample.ops.reference`. The plan's rows and the row number are tensors on the device: twenty
steps under ``torch.compile`` are one graph, a captured CUDA graph replays for every row, and
nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastsample.ops import library, native, reference
from fastsample.ops.checks import check_identity, check_step
from fastsample.ops.dtypes import DTYPE_CODES, rows_dtype
from fastsample.ops.sums import ElboSums, elbo_sums

__all__ = [
    "START_DRAW",
    "ElboSums",
    "build_info",
    "elbo_sums",
    "has_tangent",
    "noise",
    "rows_dtype",
    "step",
    "step_x0",
]

build_info = native.build_info

START_DRAW = 0xFFFFFFFF
"""The draw that makes the starting noise x_T; the noise of step k is draw k."""


def step(
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    *,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Apply one row of a plan to a batch: the whole sampler step in one kernel.

    All tensors lie on one device. Differentiable in ``x``, ``out``, ``rows``, ``uncond``,
    ``noise``, ``h1``, ``h2`` (once). float32, bfloat16 and float16 compute in float32, float64 in
    float64.

    Args:
        x: current samples ``(B, *shape)``, contiguous or channels_last.
        out: model output, shape of ``x``, or ``(B, 2 * shape[0], ...)`` holding [prediction | v]
            when the variance is learned; the conditional output when ``uncond`` is given.
        rows: plan table ``(K, 13)`` float64, columns as `fastsample.plans.plan.COLUMNS`.
        row: row number, int64, one element or one per sample ``(B,)``. Outside ``[0, K)``: NaN.
        uncond: unconditional model output, shape of ``out``: ``m = u + w (out - u)``.
        seeds: int64, one element or ``(B,)``, the bits of the 64-bit seed; with ``index``, turns on
            generated noise.
        index: int64 ``(B,)``, each sample's global index.
        noise: shape and dtype of ``x``, used instead of generated noise.
        h1: earlier x0 (multistep samplers), shape of ``x``, float32 (float64 for float64 ``x``).
        h2: the x0 before that.
        target: where to write the result (shape, dtype and strides of ``x``, may be ``x``, which
            must then share no memory with another operand); not differentiable.

    Returns:
        x_next ``(B, *shape)``. A row with ``d > 0`` and neither ``seeds`` nor ``noise`` gives NaN.

    Raises:
        TypeError: a dtype other than those named.
        ValueError: shapes or devices that do not match.

    Equivalent to, per sample, with the row's coefficients::

        m = out if uncond is None else uncond + w * (out - uncond)
        x0 = (p * x + q * m).clamp(lo, hi)
        x_next = a * x + b * x0 + e * m
        if noise is not None:
            x_next = x_next + d * noise
    """
    check_step("step", x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    operands = (x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    if has_tangent(operands):
        if target is not None:
            raise ValueError("step: target must be None in forward mode, got a tensor")
        return reference.step(*operands)
    if _needs_grad(operands):
        if target is not None:
            raise ValueError(
                "step: target must be None when a gradient is asked for, got a tensor; "
                "the backward pass needs x as it was"
            )
        return _Step.apply(*operands)[0]
    if target is None:
        return library.step_op(*operands)
    if target is x:
        if uncond is None and noise is None and h1 is None and h2 is None:
            # Every argument that is not passed saves the dispatcher 0.1 us.
            operands = operands[:4] if seeds is None else operands[:7]
        library.step_into_op(x, *operands)
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
        others = (x, out, uncond, noise, h1, h2)
        if any(other is not None and _overlap(target, other) for other in others):
            raise ValueError(
                "step: target must be x or share no memory with the operands, got a mixture"
            )
    library.step_into_op(target, *operands)
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
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `step`, also returning the clamped x0 estimate ``(B, *shape)`` in arithmetic precision."""
    check_step("step_x0", x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    operands = (x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    if has_tangent(operands):
        return reference.step_x0(*operands)
    if _needs_grad(operands):
        return _Step.apply(*operands)
    return library.step_x0_op(*operands)


def noise(
    seeds: Tensor,
    index: Tensor,
    shape: Sequence[int],
    *,
    draw: int = START_DRAW,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Standard normal noise ``(B, *shape)`` that belongs to the samples, not to the batch.

    A pure function of (seed, sample index, draw, element): Philox4x32-10 (Salmon et al. 2011) and
    Box-Muller, the same on every device, in every batch and memory format.

    Args:
        seeds: int64, one element or ``(B,)``: the bits of each sample's 64-bit seed.
        index: int64 ``(B,)``: global sample indices.
        shape: shape of one sample.
        draw: which of the sample's noises, in ``[0, 2**32)``: a row number, or `START_DRAW` for
            x_T.
        dtype: float32, bfloat16, float16 or float64 (float32 values, widened).
        channels_last: memory format of the result (3 or 4 sample dimensions).

    Raises:
        TypeError: another dtype.
        ValueError: mismatched devices or sizes.
    """
    if dtype not in DTYPE_CODES:
        raise TypeError(f"noise: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    if not isinstance(draw, int):
        raise TypeError(f"noise: draw must be an integer, got {draw!r}")
    if not 0 <= draw < 2**32:
        raise ValueError(f"noise: draw must be in [0, 2**32), got {draw}")
    check_identity("noise", seeds, index)
    size = (index.shape[0], *shape)
    if channels_last and len(size) not in native.CHANNELS_LAST:
        raise ValueError(
            f"noise: shape must have 3 or 4 dimensions for channels_last, got {tuple(shape)}"
        )
    return library.noise_op(seeds, index, size, draw, dtype, channels_last)


def _needs_grad(operands) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in operands)


def has_tangent(operands) -> bool:
    """Whether forward-mode derivatives are asked for: those go through plain torch."""
    return forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in operands
    )


def _overlap(target: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory without being the same positions."""
    first, second = target.data_ptr(), other.data_ptr()
    if first == second and target.shape == other.shape:
        return False
    return (
        first < second + other.numel() * other.element_size()
        and second < first + target.numel() * target.element_size()
    )


class _Step(torch.autograd.Function):
    """Autograd outside the operator: cheaper than `register_autograd`, the op stays functional."""

    @staticmethod
    def forward(*operands):
        return library.step_x0_op(*operands)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, grad_x0):
        operands = ctx.saved_tensors
        x, out, rows, row, uncond, _, _, noise, h1, h2 = operands
        if grad is None:  # only x0 was used
            grad = torch.zeros_like(x)
        if torch.compiler.is_compiling():  # dynamo cannot trace a Function inside a backward
            grads = library.step_backward_op(grad, grad_x0, *operands)
        else:
            grads = _StepBackward.apply(grad, grad_x0, *operands)
        grad_x, grad_out, grad_uncond, grad_noise, grad_h1, grad_h2 = (
            None if operand is None else g
            for operand, g in zip((x, out, uncond, noise, h1, h2), grads, strict=True)
        )
        grad_rows = None
        if ctx.needs_input_grad[2]:
            sums = library.row_gradients_op(grad, grad_x0, *operands).to(rows.dtype)
            # A row outside the table made NaN; so is every gradient from it.
            number = row.reshape(-1).expand(sums.shape[0]).clamp(0, rows.shape[0] - 1)
            grad_rows = torch.zeros_like(rows).index_add_(0, number, sums)
        return (
            *(grad_x, grad_out, grad_rows, None, grad_uncond),
            *(None, None, grad_noise, grad_h1, grad_h2),
        )


class _StepBackward(torch.autograd.Function):
    """The backward kernel; says so when a second derivative is asked for, instead of giving 0."""

    @staticmethod
    def forward(*operands):
        return library.step_backward_op(*operands)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "step: derivatives must be of first order, got a second; the reference in plain torch, "
            "fastsample.ops.reference.step, has them all"
        )
