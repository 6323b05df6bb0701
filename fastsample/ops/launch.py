"""Turns tensors into the arguments of a kernel: memory format, device and addresses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsample.ops.dtypes import DTYPE_CODES

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The channels_last memory format for tensors of 4 and of 5 dimensions."""


def packing(x: Tensor, out: Tensor) -> torch.memory_format | None:
    """Return the memory format in which a kernel reads x and out; None if both are contiguous."""
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


def packed(fmt: torch.memory_format | None, tensor: Tensor) -> Tensor:
    """Return the tensor in the format that `packing` returned, copied only if needed."""
    return tensor.contiguous(memory_format=fmt or torch.contiguous_format)


def new_like(
    x: Tensor, fmt: torch.memory_format | None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an uninitialised tensor in the shape of `x`, into which a kernel writes a result."""
    if fmt is None and dtype is None and x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, dtype=dtype, memory_format=fmt or torch.contiguous_format)


def device_arguments(x: Tensor) -> tuple[int, int, int]:
    """Return (CUDA device or -1 for the CPU, raw CUDA stream, CPU threads) for a kernel on `x`."""
    if x.is_cpu:
        return -1, 0, torch.get_num_threads()
    index = x.device.index
    return index, _raw_stream(index), 0


def _raw_stream(index: int) -> int:
    """Return the handle of torch's current stream on a CUDA device."""
    # Triton and bitsandbytes use this private call too; the public one is slower.
    module = torch._C  # pyright: ignore[reportPrivateUsage]
    current = getattr(module, "_cuda_getCurrentRawStream", None)
    return current(index) if current else torch.cuda.current_stream(index).cuda_stream


def launch_step(
    kernel: Callable[..., None],
    fmt: torch.memory_format | None,
    results: tuple[int, ...],
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
) -> None:
    """Call a native kernel with the addresses of a step's operands.

    This is one flat function because it runs once per row on the host: reading an attribute of a
    tensor costs 0.1 us and calling a function as much.

    Args:
        kernel: a function of `fastsample._native`.
        fmt: the format from `packing`.
        results: the arguments after the operands, such as the addresses of the outputs.
        x: as in `fastsample.ops.step`, like the operands that follow.
        out: model output.
        rows: plan table.
        row: row number.
        uncond: unconditional model output.
        seeds: seeds of generated noise.
        index: sample indices.
        draw: number of the draw of generated noise.
        noise: noise to use.
        h1: earlier x0.
        h2: the x0 before that.
        h3: the x0 before that.
        h4: the x0 before that.
    """
    if fmt is not None:
        x, out = packed(fmt, x), packed(fmt, out)
    if not (rows.is_contiguous() and row.is_contiguous()):
        rows, row = rows.contiguous(), row.contiguous()
    uncond_address = noise_address = seeds_address = index_address = draw_address = 0
    seed_per_sample = draw_per_sample = False
    history = (0, 0, 0, 0)
    # The packed copies are kept in variables, so that they live until the kernel has read them.
    if uncond is not None:
        uncond = packed(fmt, uncond)
        uncond_address = uncond.data_ptr()
    if noise is not None:
        noise = packed(fmt, noise)
        noise_address = noise.data_ptr()
    if not (h1 is h2 is h3 is h4 is None):
        earlier = [None if h is None else packed(fmt, h) for h in (h1, h2, h3, h4)]
        history = tuple(0 if h is None else h.data_ptr() for h in earlier)
    if seeds is not None and index is not None:
        seeds, index = seeds.contiguous(), index.contiguous()
        seed_per_sample = seeds.numel() != 1
        seeds_address, index_address = seeds.data_ptr(), index.data_ptr()
        if draw is not None:
            draw = draw.contiguous()
            draw_address, draw_per_sample = draw.data_ptr(), draw.numel() != 1
    shape = x.shape
    batch, channels = shape[0], shape[1]
    size = x.numel() // batch if batch else 0
    kernel(
        *device_arguments(x),
        DTYPE_CODES[x.dtype],
        batch,
        size,
        channels,
        size // channels if channels else 0,
        fmt is not None and fmt != torch.contiguous_format,
        out.shape[1] != channels,
        x.data_ptr(),
        out.data_ptr(),
        uncond_address,
        noise_address,
        *history,
        rows.data_ptr(),
        rows.shape[0],
        row.data_ptr(),
        row.numel() != 1,
        seeds_address,
        seed_per_sample,
        index_address,
        draw_address,
        draw_per_sample,
        *results,
    )
