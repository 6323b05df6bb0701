"""The kernels behind the operators: tensors become pointers here, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# After torch: its OpenMP runtime is loaded by then, so both share one thread pool.
from fastsample import _native  # isort: skip
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.plans.rows import COLUMNS

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def packing(x: Tensor, out: Tensor) -> torch.memory_format | None:
    """None if the operands lie in C order, else the format to pack them to."""
    if x.is_contiguous() and out.is_contiguous():
        return None
    fmt = CHANNELS_LAST.get(x.dim())
    if (
        fmt is not None
        and x.is_contiguous(memory_format=fmt)
        and out.is_contiguous(memory_format=fmt)
    ):
        return fmt
    return torch.contiguous_format


def _place(x: Tensor) -> tuple[int, int, int]:
    """(CUDA device or -1, raw stream, CPU threads)."""
    if x.is_cpu:
        return -1, 0, torch.get_num_threads()
    index = x.device.index
    return index, _raw_stream(index), 0


def _raw_stream(index: int) -> int:
    # The private call is what Triton and bitsandbytes use (0.1 us); the public one makes an object.
    current = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return current(index) if current else torch.cuda.current_stream(index).cuda_stream


def _packed(fmt: torch.memory_format | None, tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=fmt or torch.contiguous_format)


def _launch(
    function,
    fmt,
    results,
    x,
    out,
    rows,
    row,
    uncond=None,
    seeds=None,
    index=None,
    noise=None,
    h1=None,
    h2=None,
):
    """Call a step kernel: pack what is strided, then turn everything into integers.

    One flat function because it runs once per row on the host: an attribute of a tensor costs
    0.1 us and a call as much.
    """
    if fmt is not None:
        x, out = _packed(fmt, x), _packed(fmt, out)
    if not (rows.is_contiguous() and row.is_contiguous()):
        rows, row = rows.contiguous(), row.contiguous()
    at_uncond = at_noise = at_h1 = at_h2 = at_seeds = at_index = 0
    seed_per_sample = False
    # Packed tensors keep their names, so that they live until the kernel has them.
    if uncond is not None:
        uncond = _packed(fmt, uncond)
        at_uncond = uncond.data_ptr()
    if noise is not None:
        noise = _packed(fmt, noise)
        at_noise = noise.data_ptr()
    if h1 is not None:
        h1 = _packed(fmt, h1)
        at_h1 = h1.data_ptr()
    if h2 is not None:
        h2 = _packed(fmt, h2)
        at_h2 = h2.data_ptr()
    if seeds is not None and index is not None:
        seeds, index = seeds.contiguous(), index.contiguous()
        seed_per_sample = seeds.numel() != 1
        at_seeds, at_index = seeds.data_ptr(), index.data_ptr()
    shape = x.shape
    batch, channels = shape[0], shape[1]
    size = x.numel() // batch if batch else 0
    function(
        *_place(x),
        DTYPE_CODES[x.dtype],
        batch,
        size,
        channels,
        size // channels if channels else 0,
        fmt is not None and fmt != torch.contiguous_format,
        out.shape[1] != channels,
        x.data_ptr(),
        out.data_ptr(),
        at_uncond,
        at_noise,
        at_h1,
        at_h2,
        rows.data_ptr(),
        rows.shape[0],
        row.data_ptr(),
        row.numel() != 1,
        at_seeds,
        seed_per_sample,
        at_index,
        *results,
    )


def new(x: Tensor, fmt: torch.memory_format | None, dtype: torch.dtype | None = None) -> Tensor:
    """An output like `x`, in the format the kernel will write."""
    if fmt is None and dtype is None and x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, dtype=dtype, memory_format=fmt or torch.contiguous_format)


def step(x, out, *rest):
    """Operator step."""
    fmt = packing(x, out)
    target = new(x, fmt)
    _launch(_native.step, fmt, (target.data_ptr(), 0), x, out, *rest)
    return target


def step_x0(x, out, *rest):
    """Operator step_x0."""
    fmt = packing(x, out)
    target, x0 = new(x, fmt), new(x, fmt, history_dtype(x))
    _launch(_native.step, fmt, (target.data_ptr(), x0.data_ptr()), x, out, *rest)
    return target, x0


def step_into(target, x, out, *rest):
    """Operator step_into."""
    fmt = packing(x, out)
    if target.is_contiguous(memory_format=fmt or torch.contiguous_format):
        _launch(_native.step, fmt, (target.data_ptr(), 0), x, out, *rest)
    else:
        target.copy_(step(x, out, *rest))


def empty_gradients(x, out, uncond=None, noise=None, h1=None, h2=None):
    """Outputs of step_backward, empty for operands that are not there."""
    fmt = packing(x, out) or torch.contiguous_format

    def like(tensor):
        return x.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=fmt)

    return like(x), like(out), like(uncond), like(noise), like(h1), like(h2)


def step_backward(
    grad,
    grad_x0,
    x,
    out,
    rows,
    row,
    uncond=None,
    seeds=None,
    index=None,
    noise=None,
    h1=None,
    h2=None,
):
    """Operator step_backward."""
    fmt = packing(x, out)
    grads = empty_gradients(x, out, uncond, noise, h1, h2)
    grad = _packed(fmt, grad)
    grad_x0 = None if grad_x0 is None else _packed(fmt, grad_x0)
    present = (x, out, uncond, noise, h1, h2)
    pointers = [0 if t is None else g.data_ptr() for t, g in zip(present, grads, strict=True)]
    results = (grad.data_ptr(), 0 if grad_x0 is None else grad_x0.data_ptr(), *pointers)
    _launch(
        _native.step_backward,
        fmt,
        results,
        *(x, out, rows, row, uncond, seeds, index, noise, h1, h2),
    )
    return grads


def row_gradients(
    grad,
    grad_x0,
    x,
    out,
    rows,
    row,
    uncond=None,
    seeds=None,
    index=None,
    noise=None,
    h1=None,
    h2=None,
):
    """Operator row_gradients."""
    fmt = packing(x, out)
    grad = _packed(fmt, grad)
    grad_x0 = None if grad_x0 is None else _packed(fmt, grad_x0)
    batch = x.shape[0]
    # On a GPU a block sums one part of a sample.
    chunks = 1 if x.is_cpu or not batch else -(-(x.numel() // batch) // _ROW_CHUNK)
    sums = x.new_zeros((batch, max(chunks, 1), len(COLUMNS)), dtype=torch.float64)
    at_x0 = 0 if grad_x0 is None else grad_x0.data_ptr()
    results = (grad.data_ptr(), at_x0, chunks, sums.data_ptr())
    if x.numel():
        _launch(
            _native.row_gradients,
            fmt,
            results,
            *(x, out, rows, row, uncond, seeds, index, noise, h1, h2),
        )
    return sums.sum(1) if sums.shape[1] != 1 else sums.squeeze(1)


def new_noise(index, size, dtype, channels_last):
    """Output of the operator noise."""
    fmt = CHANNELS_LAST[len(size)] if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=index.device, memory_format=fmt)


def noise(seeds, index, size, draw, dtype, channels_last):
    """Operator noise."""
    target = new_noise(index, size, dtype, channels_last)
    per_sample = target.numel() // size[0] if size[0] else 0
    channels = size[1] if len(size) > 1 else 1
    _native.fill_noise(
        *_place(index),
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


_ROW_CHUNK = 16384

# Elements per partial sum: enough blocks for a GPU when samples are few and large.
_CHUNK = 4096


def sums_width(nodes, log_scales):
    """Columns of the operator elbo_sums."""
    return 3 + 2 * nodes.shape[0] + log_scales.shape[0]


def elbo_sums(x0, x, out, coefficients, nodes, log_scales, bin_width):
    """Operator elbo_sums."""
    x0, x, out = x0.contiguous(), x.contiguous(), out.contiguous()
    nodes, log_scales = nodes.contiguous(), log_scales.contiguous()
    batch = x0.shape[0]
    size = x0.numel() // batch if batch else 0
    chunks = -(-size // _CHUNK)
    sums = nodes.new_empty(batch, chunks, sums_width(nodes, log_scales))
    # A GPU's grid has 65535 places for samples.
    for first in range(0, batch, 65535):
        last = min(first + 65535, batch)
        _native.elbo_sums(
            *_place(x0),
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
            _CHUNK,
            sums[first:].data_ptr(),
        )
    return sums.sum(1) if chunks != 1 else sums.squeeze(1)


def build_info() -> dict[str, Any]:
    """How this copy was built and what it runs on.

    Returns:
        `version`, `compiler`, `openmp`, `cuda` (whether CUDA kernels were built; it says nothing
        about a GPU), with CUDA also `cuda_architectures` and `cuda_compiler`, `cpu_available`
        (instruction sets of this build that the machine has, narrowest first) and `cpu` (the one
        in use).
    """
    return _native.build_info()
