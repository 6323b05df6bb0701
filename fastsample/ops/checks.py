"""Functions that check the arguments of the operators.

They are made here, with messages for users; the native code only guards against bad memory access.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsample.ops.dtypes import DTYPE_CODES, history_dtype, rows_dtype
from fastsample.plans.rows import COLUMNS

# Looked up only once, since they are needed in every step.
_FLOAT64, _INT64, _NUM_COLUMNS = torch.float64, torch.int64, len(COLUMNS)
_STRIDED = torch.strided


def check_step(
    name: str,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None,
    seeds: Tensor | None,
    index: Tensor | None,
    draw: Tensor | None,
    noise: Tensor | None,
    *history: Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless the operands of a step fit each other.

    One combined condition decides, since it runs in every step; `_refuse` then finds the fault.
    """
    shape, dtype = x.shape, x.dtype
    # `is_cpu` comes first because reading it is cheaper than comparing devices.
    if not (
        dtype in DTYPE_CODES
        and len(shape) >= 2
        and (out.shape == shape or out.shape == (shape[0], 2 * shape[1], *shape[2:]))
        and out.dtype == dtype
        and rows.dim() == 2
        and rows.shape[1] == _NUM_COLUMNS
        and row.dtype == _INT64
        and (row.numel() == 1 or row.shape == shape[:1])
        and rows.shape[0] > 0
        and x.layout is _STRIDED
        and out.layout is _STRIDED
        and (
            (x.is_cpu and out.is_cpu and rows.is_cpu and row.is_cpu and rows.dtype == _FLOAT64)
            or (
                x.device == out.device == rows.device == row.device
                and rows.dtype == rows_dtype(x.device)
            )
        )
    ):
        _refuse(name, x, out, rows, row)
    if uncond is not None:
        check_operand(name, "uncond", uncond, out.shape, dtype, x.device)
    if noise is not None:
        check_operand(name, "noise", noise, shape, dtype, x.device)
    for n, earlier in enumerate(history):
        if earlier is not None:
            check_operand(name, f"h{n + 1}", earlier, shape, history_dtype(x), x.device)
    if seeds is not None:
        check_identity(name, seeds, index, shape[0], x.device)
    if draw is not None:
        _check_number(name, "draw", draw, x)


def _refuse(name: str, x: Tensor, out: Tensor, rows: Tensor, row: Tensor) -> None:
    """Raise the error that describes the first operand that does not fit."""
    shape = tuple(x.shape)
    if x.dtype not in DTYPE_CODES:
        raise TypeError(f"{name}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{name}: x must have a batch and a sample dimension, got shape {shape}")
    if out.shape != x.shape and tuple(out.shape) != (shape[0], 2 * shape[1], *shape[2:]):
        raise ValueError(
            f"{name}: out must have the shape of x {shape}, or twice its channels when the "
            f"variance is learned, got {tuple(out.shape)}"
        )
    check_operand(name, "out", out, out.shape, x.dtype, x.device)
    for label, tensor in (("x", x), ("out", out)):
        if tensor.layout is not _STRIDED:
            raise TypeError(f"{name}: {label} must be a dense tensor, got {tensor.layout}")
    if rows.dim() != 2 or rows.shape[1] != len(COLUMNS) or not rows.shape[0]:
        raise ValueError(
            f"{name}: rows must be a table (K, {len(COLUMNS)}) of at least one row, "
            f"got {tuple(rows.shape)}"
        )
    check_operand(name, "rows", rows, rows.shape, rows_dtype(x.device), x.device)
    _check_number(name, "row", row, x)


def _check_number(name: str, label: str, tensor: Tensor, x: Tensor) -> None:
    """Raise unless the argument `label` is an int64 number, or one per sample of `x`."""
    if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name}: {label} must be an int64 tensor, got {tensor!r:.80}")
    if tensor.numel() != 1 and tensor.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: {label} must have one element or one per sample ({x.shape[0]},), "
            f"got {tuple(tensor.shape)}"
        )
    check_operand(name, label, tensor, tensor.shape, torch.int64, x.device)


def check_operand(
    name: str,
    label: str,
    tensor: Tensor,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise unless the argument `label` of the function `name` has this shape, dtype and device."""
    if tensor.layout is not _STRIDED:
        raise TypeError(f"{name}: {label} must be a dense tensor, got {tensor.layout}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: {label} must be {dtype}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(
            f"{name}: {label} must have shape {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.device != device:
        raise ValueError(f"{name}: {label} must be on {device}, got {tensor.device}")


def check_identity(
    name: str,
    seeds: Any,
    index: Any,
    batch: int | None = None,
    device: torch.device | None = None,
) -> None:
    """Raise unless seeds and sample indices are int64, one per sample, and on the device.

    By default the size and the device are those of `index`.
    """
    for label, tensor in (("index", index), ("seeds", seeds)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            raise TypeError(f"{name}: {label} must be an int64 tensor, got {tensor!r:.80}")
        device = tensor.device if device is None else device
        if tensor.device != device:
            raise ValueError(f"{name}: {label} must be on {device}, got {tensor.device}")
    if index.dim() != 1 or (batch is not None and len(index) != batch):
        wanted = "(B,)" if batch is None else f"({batch},)"
        raise ValueError(f"{name}: index must have shape {wanted}, got {tuple(index.shape)}")
    batch = len(index)
    if seeds.numel() != 1 and seeds.shape != (batch,):
        raise ValueError(
            f"{name}: seeds must have one element or shape ({batch},), got {tuple(seeds.shape)}"
        )
