"""The kernels behind the operators: tensors become pointers here, and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

# After torch: its OpenMP runtime is loaded by then, so both share one thread pool.
from fastsample import _native  # isort: skip
from fastsample.ops.checks import DTYPE_CODES, history_dtype

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_format(x: Tensor, out: Tensor) -> torch.memory_format | None:
    """The format in which the operands can be read as they lie; None for C order."""
    if x.is_contiguous() and out.is_contiguous():
        return None
    fmt = CHANNELS_LAST.get(x.dim())
    if (
        fmt is not None
        and x.is_contiguous(memory_format=fmt)
        and out.is_contiguous(memory_format=fmt)
    ):
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
        DTYPE_CODES[x.dtype],
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
    fmt = channels_last_format(x, out)
    x, out, uncond, noise, h1, h2 = _packed(fmt, x, out, uncond, noise, h1, h2)
    rows, row, seeds, index = _packed(None, rows, row, seeds, index)
    arguments = _native_arguments(fmt, x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    _native.step(*arguments, target.data_ptr(), _pointer(x0))


def new(x: Tensor, out: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An output like `x`, in the format the kernel will write."""
    fmt = channels_last_format(x, out) or torch.contiguous_format
    return torch.empty_like(x, dtype=dtype, memory_format=fmt)


def step(x, out, *rest):
    """Operator step."""
    target = new(x, out)
    _run_step(target, None, x, out, *rest)
    return target


def step_x0(x, out, *rest):
    """Operator step_x0."""
    target, x0 = new(x, out), new(x, out, history_dtype(x))
    _run_step(target, x0, x, out, *rest)
    return target, x0


def step_into(target, x, out, *rest):
    """Operator step_into."""
    fmt = channels_last_format(x, out) or torch.contiguous_format
    if target.is_contiguous(memory_format=fmt):
        _run_step(target, None, x, out, *rest)
    else:
        target.copy_(step(x, out, *rest))


def empty_gradients(x, out, uncond, noise, h1, h2):
    """Outputs of step_backward, empty for operands that are not there."""
    fmt = channels_last_format(x, out) or torch.contiguous_format
    absent = x.new_empty(0)

    def like(tensor):
        return absent.clone() if tensor is None else torch.empty_like(tensor, memory_format=fmt)

    return like(x), like(out), like(uncond), like(noise), like(h1), like(h2)


def step_backward(grad, grad_x0, x, out, rows, row, uncond, seeds, index, noise, h1, h2):
    """Operator step_backward."""
    fmt = channels_last_format(x, out)
    grads = empty_gradients(x, out, uncond, noise, h1, h2)
    x, out, uncond, noise, h1, h2 = _packed(fmt, x, out, uncond, noise, h1, h2)
    grad, grad_x0 = _packed(fmt, grad, grad_x0)
    rows, row, seeds, index = _packed(None, rows, row, seeds, index)
    arguments = _native_arguments(fmt, x, out, rows, row, uncond, seeds, index, noise, h1, h2)
    present = (x, out, uncond, noise, h1, h2)
    pointers = [0 if t is None else g.data_ptr() for t, g in zip(present, grads, strict=True)]
    _native.step_backward(*arguments, _pointer(grad), _pointer(grad_x0), *pointers)
    return grads


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
        *_place(index.device),
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


def build_info() -> dict[str, object]:
    """How this copy was built and what it runs on.

    Returns:
        `version`, `compiler`, `openmp`, `cuda` (whether CUDA kernels were built; it says nothing
        about a GPU), with CUDA also `cuda_architectures` and `cuda_compiler`, `cpu_available`
        (instruction sets of this build that the machine has, narrowest first) and `cpu` (the one
        in use).
    """
    return _native.build_info()
