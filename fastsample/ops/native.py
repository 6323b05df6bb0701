"""The CPU and CUDA implementations of the operators, which call kernels of `fastsample._native`.

`fastsample.ops.library` registers them under the same names. Arguments are checked before, in
`fastsample.ops.checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Import this after torch: its OpenMP runtime is then loaded, and both share one thread pool.
from fastsample import _native  # isort: skip
from fastsample.ops import launch
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.ops.launch import CHANNELS_LAST, launch_step, new_like, packed, packing
from fastsample.plans.rows import COLUMNS

# One CUDA block sums this many elements of a sample: so a GPU has work for all its processors even
# if samples are few and large.
_ROW_GRADIENT_CHUNK = 16384
_ELBO_CHUNK = 4096

_MOST_SAMPLES = 65535  # CUDA limits the second dimension of a grid to this

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The gradients of x, out, uncond, noise and h1 to h4; empty tensors for operands left out."""


def step(x: Tensor, out: Tensor, rows: Tensor, row: Tensor, *optional: Tensor | None) -> Tensor:
    """Return x_next: the operator `step`."""
    fmt = packing(x, out)
    target = new_like(x, fmt)
    launch_step(_native.step, fmt, (target.data_ptr(), 0), x, out, rows, row, *optional)
    return target


def step_x0(
    x: Tensor, out: Tensor, rows: Tensor, row: Tensor, *optional: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return (x_next, x0): the operator `step_x0`."""
    fmt = packing(x, out)
    target, x0 = new_like(x, fmt), new_like(x, fmt, history_dtype(x))
    results = (target.data_ptr(), x0.data_ptr())
    launch_step(_native.step, fmt, results, x, out, rows, row, *optional)
    return target, x0


def step_into(
    target: Tensor, x: Tensor, out: Tensor, rows: Tensor, row: Tensor, *optional: Tensor | None
) -> None:
    """Write x_next to `target`: the operator `step_into`."""
    fmt = packing(x, out)
    if target.is_contiguous(memory_format=fmt or torch.contiguous_format):
        launch_step(_native.step, fmt, (target.data_ptr(), 0), x, out, rows, row, *optional)
    else:
        target.copy_(step(x, out, rows, row, *optional))


def empty_gradients(
    x: Tensor,
    out: Tensor,
    uncond: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> Gradients:
    """Return uninitialised tensors for the results of `step_backward`."""
    fmt = packing(x, out) or torch.contiguous_format

    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=fmt)

    history = (like(h1), like(h2), like(h3), like(h4))
    return like(x), like(out), like(uncond), like(noise), *history


def step_backward(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    uncond: Tensor | None = None,
    seeds: Tensor | None = None,
    index: Tensor | None = None,
    draw: Tensor | None = None,
    noise: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    h4: Tensor | None = None,
) -> Gradients:
    """Return the gradients of the tensors of a step: the operator `step_backward`."""
    fmt = packing(x, out)
    grads = empty_gradients(x, out, uncond, noise, h1, h2, h3, h4)
    grad = packed(fmt, grad)
    grad_x0 = None if grad_x0 is None else packed(fmt, grad_x0)
    operands = (x, out, uncond, noise, h1, h2, h3, h4)
    addresses = [0 if t is None else g.data_ptr() for t, g in zip(operands, grads, strict=True)]
    results = (grad.data_ptr(), 0 if grad_x0 is None else grad_x0.data_ptr(), *addresses)
    launch_step(
        _native.step_backward,
        fmt,
        results,
        *(x, out, rows, row, uncond, seeds, index, draw, noise, h1, h2, h3, h4),
    )
    return grads


def row_gradients(
    grad: Tensor,
    grad_x0: Tensor | None,
    x: Tensor,
    out: Tensor,
    rows: Tensor,
    row: Tensor,
    *optional: Tensor | None,
) -> Tensor:
    """Return the gradient `(B, 15)` of each sample's row: the operator `row_gradients`."""
    fmt = packing(x, out)
    grad = packed(fmt, grad)
    grad_x0 = None if grad_x0 is None else packed(fmt, grad_x0)
    batch = x.shape[0]
    chunks = 1 if x.is_cpu or not batch else -(-(x.numel() // batch) // _ROW_GRADIENT_CHUNK)
    sums = x.new_zeros((batch, max(chunks, 1), len(COLUMNS)), dtype=torch.float64)
    grad_x0_address = 0 if grad_x0 is None else grad_x0.data_ptr()
    results = (grad.data_ptr(), grad_x0_address, chunks, sums.data_ptr())
    if x.numel():
        launch_step(_native.row_gradients, fmt, results, x, out, rows, row, *optional)
    return sums.sum(1) if sums.shape[1] != 1 else sums.squeeze(1)


def new_noise(
    index: Tensor, size: Sequence[int], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """Return an uninitialised tensor for the result of `noise`."""
    fmt = CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=index.device, memory_format=fmt)


def noise(
    seeds: Tensor,
    index: Tensor,
    size: Sequence[int],
    draw: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Return standard normals of the given size `(B, *shape)`: the operator `noise`."""
    target = new_noise(index, size, dtype, channels_last)
    per_sample = target.numel() // size[0] if size[0] else 0
    channels = size[1] if len(size) > 1 else 1
    _native.fill_noise(
        *launch.device_arguments(index),
        DTYPE_CODES[dtype],
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


def sums_width(nodes: Tensor, log_scales: Tensor) -> int:
    """Return the number of columns in the output of `elbo_sums`."""
    return 3 + 2 * nodes.shape[0] + log_scales.shape[0]


def elbo_sums(
    x0: Tensor,
    x: Tensor,
    out: Tensor,
    coefficients: Sequence[float],
    nodes: Tensor,
    log_scales: Tensor,
    bin_width: float,
) -> Tensor:
    """Return the field `table` of `fastsample.ops.elbo_sums`: the operator `elbo_sums`."""
    x0, x, out = x0.contiguous(), x.contiguous(), out.contiguous()
    nodes, log_scales = nodes.contiguous(), log_scales.contiguous()
    batch = x0.shape[0]
    size = x0.numel() // batch if batch else 0
    chunks = -(-size // _ELBO_CHUNK)
    sums = nodes.new_empty(batch, chunks, sums_width(nodes, log_scales))
    for first in range(0, batch, _MOST_SAMPLES):
        last = min(first + _MOST_SAMPLES, batch)
        _native.elbo_sums(
            *launch.device_arguments(x0),
            DTYPE_CODES[x0.dtype],
            last - first,
            size,
            out.shape[1] != x0.shape[1],
            x0[first:].data_ptr(),
            x[first:].data_ptr(),
            out[first:].data_ptr(),
            *coefficients,
            nodes.data_ptr(),
            nodes.shape[0],
            log_scales.data_ptr(),
            log_scales.shape[0],
            bin_width,
            _ELBO_CHUNK,
            sums[first:].data_ptr(),
        )
    return sums.sum(1) if chunks != 1 else sums.squeeze(1)


def build_info() -> dict[str, Any]:
    """Return how the native module was built and which instruction set it uses.

    Returns:
        `version`, `compiler`, `openmp`, `cuda` (whether CUDA kernels were built; it says nothing
        about a GPU), with CUDA also `cuda_architectures` and `cuda_compiler`, `cpu_available`
        (instruction sets of this build that the machine has, narrowest first) and `cpu` (the one
        in use).
    """
    return _native.build_info()
