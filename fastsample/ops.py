"""The native kernels as PyTorch operators: the only file that joins torch and `fastsample._native`.

Operators are declared once (`torch.library.Library.define`), functional, with fakes, and implemented for
CPU and CUDA by the kernels, for devices without a kernel by `fastsample.reference`. The plan's rows and the
row number are tensors on the device: twenty steps under ``torch.compile`` are one graph, a captured CUDA
graph replays for every row, and nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# After torch: its OpenMP runtime is loaded by then, so both share one thread pool.
from fastsample import _native, reference  # isort: skip
from fastsample.plan import COLUMNS

START_DRAW = 0xFFFFFFFF
"""The draw that makes the starting noise x_T; the noise of step k is draw k."""

_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_REFERENCE_DEVICES = ("MPS", "XPU")

_STEP_ARGUMENTS = (
    "Tensor x, Tensor out, Tensor rows, Tensor row, Tensor? uncond, Tensor? seeds, Tensor? index, "
    "Tensor? noise, Tensor? h1, Tensor? h2"
)

_library = torch.library.Library("fastsample", "DEF")
_library.define(f"step({_STEP_ARGUMENTS}) -> Tensor")
_library.define(f"step_x0({_STEP_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(f"step_into(Tensor(a!) target, {_STEP_ARGUMENTS}) -> ()")
_library.define(
    f"step_backward(Tensor grad, Tensor? grad_x0, {_STEP_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "noise(Tensor seeds, Tensor index, SymInt[] size, int draw, ScalarType dtype, "
    "bool channels_last) -> Tensor"
)

# The overload itself: naming it skips the packet's overload resolution, 1 us a call.
_step_op = torch.ops.fastsample.step.default
_step_x0_op = torch.ops.fastsample.step_x0.default
_step_into_op = torch.ops.fastsample.step_into.default
_step_backward_op = torch.ops.fastsample.step_backward.default
_noise_op = torch.ops.fastsample.noise.default


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

    All tensors lie on one device. Differentiable in ``x``, ``out``, ``uncond``, ``noise``, ``h1``, ``h2``
    (once). float32, bfloat16 and float16 compute in float32, float64 in float64.

    Args:
        x: current samples ``(B, *shape)``, contiguous or channels_last.
        out: model output, shape of ``x``, or ``(B, 2 * shape[0], ...)`` holding [prediction | v] when the
            variance is learned; the conditional output when ``uncond`` is given.
        rows: plan table ``(K, 13)`` float64, columns as `fastsample.plan.COLUMNS`.
        row: row number, int64, one element or one per sample ``(B,)``. Outside ``[0, K)``: NaN.
        uncond: unconditional model output, shape of ``out``: ``m = u + w (out - u)``.
        seeds: int64, one element or ``(B,)``, the bits of the 64-bit seed; with ``index``, turns on
            generated noise.
        index: int64 ``(B,)``, each sample's global index.
        noise: shape and dtype of ``x``, used instead of generated noise.
        h1: earlier x0 (multistep samplers), shape of ``x``, float32 (float64 for float64 ``x``).
        h2: the x0 before that.
        target: where to write the result (shape, dtype and strides of ``x``, may be ``x``); not
            differentiable.

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
    _check("step", x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    operands = (x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    if _needs_grad(operands):
        if target is not None:
            raise ValueError(
                "step: target must be None when a gradient is asked for, got a tensor; "
                "the backward pass needs x as it was"
            )
        return _Step.apply(*operands)[0]
    if target is None:
        return _step_op(*operands)
    if target.shape != x.shape or target.dtype != x.dtype or target.stride() != x.stride():
        raise ValueError(
            f"step: target must have the shape, dtype and strides of x {tuple(x.shape)}, "
            f"got {tuple(target.shape)}"
        )
    _step_into_op(target, *operands)
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
    _check("step_x0", x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    operands = (x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    if _needs_grad(operands):
        return _Step.apply(*operands)
    return _step_x0_op(*operands)


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
        draw: which of the sample's noises, in ``[0, 2**32)``: a row number, or `START_DRAW` for x_T.
        dtype: float32, bfloat16, float16 or float64 (float32 values, widened).
        channels_last: memory format of the result (3 or 4 sample dimensions).

    Raises:
        TypeError: another dtype.
        ValueError: mismatched devices or sizes.
    """
    if dtype not in _DTYPE_CODES:
        raise TypeError(f"noise: dtype must be a floating type of at most 64 bits, got {dtype}")
    if not 0 <= draw < 2**32:
        raise ValueError(f"noise: draw must be in [0, 2**32), got {draw}")
    _check_identity("noise", seeds, index, index.shape[0] if index.dim() == 1 else -1, index.device)
    size = (index.shape[0], *shape)
    if channels_last and len(size) not in _CHANNELS_LAST:
        raise ValueError(
            f"noise: shape must have 3 or 4 dimensions for channels_last, got {tuple(shape)}"
        )
    return _noise_op(seeds, index, size, draw, dtype, channels_last)


# ---- checks: Python says what is wrong, C++ only guards memory ----


def _check(name, x, out, rows, row, uncond, seeds, index, noise, h1, h2) -> None:
    """One quick look at what is nearly always right; `_explain` finds the fault when it is not."""
    shape, dtype, device = x.shape, x.dtype, x.device
    if not (
        dtype in _DTYPE_CODES
        and len(shape) >= 2
        and (out.shape == shape or out.shape == (shape[0], 2 * shape[1], *shape[2:]))
        and out.dtype == dtype
        and out.device == device
        and rows.dtype == torch.float64
        and rows.dim() == 2
        and rows.shape[1] == len(COLUMNS)
        and rows.device == device
        and row.dtype == torch.int64
        and (row.numel() == 1 or row.shape == shape[:1])
        and row.device == device
    ):
        _explain(name, x, out, rows, row)
    if uncond is not None:
        _check_operand(name, "uncond", uncond, out.shape, dtype, device)
    if noise is not None:
        _check_operand(name, "noise", noise, shape, dtype, device)
    if h1 is not None:
        _check_operand(name, "h1", h1, shape, _history_dtype(x), device)
    if h2 is not None:
        _check_operand(name, "h2", h2, shape, _history_dtype(x), device)
    if seeds is not None:
        _check_identity(name, seeds, index, shape[0], device)


def _explain(name, x, out, rows, row) -> None:
    shape = tuple(x.shape)
    if x.dtype not in _DTYPE_CODES:
        raise TypeError(f"{name}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{name}: x must have a batch and a sample dimension, got shape {shape}")
    if out.shape != x.shape and tuple(out.shape) != (shape[0], 2 * shape[1], *shape[2:]):
        raise ValueError(
            f"{name}: out must have the shape of x {shape}, or twice its channels when the "
            f"variance is learned, got {tuple(out.shape)}"
        )
    _check_operand(name, "out", out, out.shape, x.dtype, x.device)
    if rows.dim() != 2 or rows.shape[1] != len(COLUMNS):
        raise ValueError(
            f"{name}: rows must be a table (K, {len(COLUMNS)}), got {tuple(rows.shape)}"
        )
    _check_operand(name, "rows", rows, rows.shape, torch.float64, x.device)
    if row.numel() != 1 and row.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: row must have one element or one per sample ({shape[0]},), "
            f"got {tuple(row.shape)}"
        )
    _check_operand(name, "row", row, row.shape, torch.int64, x.device)


def _check_operand(name, label, tensor, shape, dtype, device) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: {label} must be {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: {label} must have shape {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != device:
        raise ValueError(f"{name}: {label} must be on {device}, got {tensor.device}")


def _check_identity(name, seeds, index, batch, device) -> None:
    for label, tensor in (("seeds", seeds), ("index", index)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            raise TypeError(f"{name}: {label} must be an int64 tensor, got {tensor!r:.80}")
        if tensor.device != device:
            raise ValueError(f"{name}: {label} must be on {device}, got {tensor.device}")
    if index.shape != (batch,):
        raise ValueError(f"{name}: index must have shape ({batch},), got {tuple(index.shape)}")
    if seeds.numel() != 1 and seeds.shape != (batch,):
        raise ValueError(
            f"{name}: seeds must have one element or shape ({batch},), got {tuple(seeds.shape)}"
        )


def _needs_grad(operands) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in operands)


class _Step(torch.autograd.Function):
    """The step outside the operator: cheaper than `register_autograd`, and the op stays functional."""

    @staticmethod
    def forward(ctx, *operands):
        ctx.save_for_backward(*operands)
        return _step_x0_op(*operands)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_x0):
        operands = ctx.saved_tensors
        grads = _step_backward_op(grad, grad_x0, *operands)
        grad_x, grad_out, grad_uncond, grad_noise, grad_h1, grad_h2 = (
            g if g.numel() else None for g in grads
        )
        return grad_x, grad_out, None, None, grad_uncond, None, None, grad_noise, grad_h1, grad_h2


# ---- memory formats and pointers ----


def _channels_last_format(x: Tensor, out: Tensor) -> torch.memory_format | None:
    """The format in which the operands can be read as they lie; None for C order."""
    if x.is_contiguous() and out.is_contiguous():
        return None
    fmt = _CHANNELS_LAST.get(x.dim())
    if fmt is not None and x.is_contiguous(memory_format=fmt) and out.is_contiguous(memory_format=fmt):
        return fmt
    return None


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _place(device: torch.device) -> tuple[int, int, int]:
    """(CUDA device or -1, raw stream, CPU threads)."""
    if device.type == "cpu":
        return -1, 0, torch.get_num_threads()
    return device.index, _raw_stream(device.index), 0


def _raw_stream(index: int) -> int:
    # The private call is what Triton and bitsandbytes use (0.1 us); the public one makes an object.
    current = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return current(index) if current else torch.cuda.current_stream(index).cuda_stream


def _packed(fmt, *tensors: Tensor | None) -> list[Tensor | None]:
    if fmt is None:
        return [t if t is None or t.is_contiguous() else t.contiguous() for t in tensors]
    return [None if t is None else t.contiguous(memory_format=fmt) for t in tensors]


def _native_arguments(fmt, x, out, rows, row, uncond, seeds, index, noise, h1, h2) -> tuple:
    """Arguments common to the forward and backward kernels; tensors must be packed already."""
    batch, channels = x.shape[0], x.shape[1]
    size = x.numel() // batch if batch else 0
    return (
        *_place(x.device),
        _DTYPE_CODES[x.dtype],
        batch,
        size,
        channels,
        size // channels if channels else 0,
        fmt is not None,
        out.shape[1] != channels,
        x.data_ptr(),
        out.data_ptr(),
        _pointer(uncond),
        _pointer(noise),
        _pointer(h1),
        _pointer(h2),
        rows.data_ptr(),
        rows.shape[0],
        row.data_ptr(),
        row.numel() != 1,
        _pointer(seeds),
        seeds is not None and seeds.numel() != 1,
        _pointer(index),
    )


def _run_step(target, x0, x, out, rows, row, uncond, seeds, index, noise, h1, h2) -> None:
    fmt = _channels_last_format(x, out)
    x, out, uncond, noise, h1, h2 = _packed(fmt, x, out, uncond, noise, h1, h2)
    rows, row, seeds, index = _packed(None, rows, row, seeds, index)
    arguments = _native_arguments(fmt, x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    _native.step(*arguments, target.data_ptr(), _pointer(x0))


def _new(x: Tensor, out: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    fmt = _channels_last_format(x, out) or torch.contiguous_format
    return torch.empty_like(x, dtype=dtype, memory_format=fmt)


def _history_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- implementations ----


def _step(x, out, *rest):
    target = _new(x, out)
    _run_step(target, None, x, out, *rest)
    return target


def _step_x0(x, out, *rest):
    target, x0 = _new(x, out), _new(x, out, _history_dtype(x))
    _run_step(target, x0, x, out, *rest)
    return target, x0


def _step_into(target, x, out, *rest):
    fmt = _channels_last_format(x, out) or torch.contiguous_format
    if target.is_contiguous(memory_format=fmt):
        _run_step(target, None, x, out, *rest)
    else:
        target.copy_(_step(x, out, *rest))


def _empty_gradients(x, out, uncond, noise, h1, h2):
    fmt = _channels_last_format(x, out) or torch.contiguous_format
    absent = x.new_empty(0)

    def like(tensor):
        return absent.clone() if tensor is None else torch.empty_like(tensor, memory_format=fmt)

    return like(x), like(out), like(uncond), like(noise), like(h1), like(h2)


def _step_backward(grad, grad_x0, x, out, rows, row, uncond, seeds, index, noise, h1, h2):
    fmt = _channels_last_format(x, out)
    grads = _empty_gradients(x, out, uncond, noise, h1, h2)
    x, out, uncond, noise, h1, h2 = _packed(fmt, x, out, uncond, noise, h1, h2)
    grad, grad_x0 = _packed(fmt, grad, grad_x0)
    rows, row, seeds, index = _packed(None, rows, row, seeds, index)
    arguments = _native_arguments(fmt, x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    present = (x, out, uncond, noise, h1, h2)
    pointers = [0 if t is None else g.data_ptr() for t, g in zip(present, grads, strict=True)]
    _native.step_backward(*arguments, grad.data_ptr(), _pointer(grad_x0), *pointers)
    return grads


def _new_noise(index, size, dtype, channels_last):
    fmt = _CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=index.device, memory_format=fmt)


def _noise(seeds, index, size, draw, dtype, channels_last):
    target = _new_noise(index, size, dtype, channels_last)
    per_sample = target.numel() // size[0] if size[0] else 0
    channels = size[1] if len(size) > 1 else 1
    _native.fill_noise(
        *_place(index.device),
        _DTYPE_CODES[dtype],
        size[0],
        per_sample,
        channels,
        per_sample // channels if channels else 0,
        channels_last and not target.is_contiguous(),
        seeds.contiguous().data_ptr(),
        seeds.numel() != 1,
        index.contiguous().data_ptr(),
        draw,
        target.data_ptr(),
    )
    return target


for _device in ("CPU", "CUDA"):
    _library.impl("step", _step, _device)
    _library.impl("step_x0", _step_x0, _device)
    _library.impl("step_into", _step_into, _device)
    _library.impl("step_backward", _step_backward, _device)
    _library.impl("noise", _noise, _device)

for _device in _REFERENCE_DEVICES:
    _library.impl("step", lambda *operands: reference.step_x0(*operands)[0], _device)
    _library.impl("step_x0", reference.step_x0, _device)
    _library.impl(
        "step_into", lambda target, *rest: target.copy_(reference.step_x0(*rest)[0]), _device
    )
    _library.impl("step_backward", reference.step_backward, _device)
    _library.impl("noise", reference.noise, _device)

torch.library.register_fake("fastsample::step", lambda x, out, *rest: _new(x, out), lib=_library)
torch.library.register_fake(
    "fastsample::step_x0",
    lambda x, out, *rest: (_new(x, out), _new(x, out, _history_dtype(x))),
    lib=_library,
)
torch.library.register_fake("fastsample::step_into", lambda target, *rest: None, lib=_library)
torch.library.register_fake(
    "fastsample::step_backward",
    lambda grad, grad_x0, x, out, rows, row, uncond, seeds, index, noise, h1, h2: _empty_gradients(
        x, out, uncond, noise, h1, h2
    ),
    lib=_library,
)
torch.library.register_fake(
    "fastsample::noise",
    lambda seeds, index, size, draw, dtype, channels_last: _new_noise(
        index, size, dtype, channels_last
    ),
    lib=_library,
)
