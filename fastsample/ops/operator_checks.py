"""Checks the operands of operators that are called directly, as ``torch.ops.fastsample.*``.

The functions of `fastsample.ops` check before they call an operator. The operators themselves are
public too: whatever they are given, no kernel may read or write outside of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.ops.checks import check_identity, check_operand, check_step
from fastsample.ops.dtypes import DTYPE_CODES, history_dtype
from fastsample.ops.launch import CHANNELS_LAST


def _pad(operands: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Return the operands with None for trailing ones that were left out."""
    return (*operands, *[None] * (count - len(operands)))


_STEP_OPERANDS = 13


def check_step_operator(name: str, *operands: Tensor | None) -> None:
    """Raise unless the operands of `step` or `step_x0` fit each other."""
    check_step(name, *_pad(operands, _STEP_OPERANDS))


def check_step_into(name: str, target: Tensor, *operands: Tensor | None) -> None:
    """Raise unless the operands fit each other, and the target can take the result."""
    check_step_operator(name, *operands)
    x = operands[0]
    assert x is not None
    check_operand(name, "target", target, x.shape, x.dtype, x.device)
    if not target.numel() or target.is_contiguous():
        return
    fmt = CHANNELS_LAST.get(target.dim())
    if (fmt is None or not target.is_contiguous(memory_format=fmt)) and _repeats(target):
        raise ValueError(
            f"{name}: target must have one place in memory for each element, got strides "
            f"{target.stride()} for shape {tuple(target.shape)}"
        )


def _repeats(tensor: Tensor) -> bool:
    """Return whether elements of a tensor may share memory, as those of an expanded one do."""
    sizes = sorted(
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size > 1
    )
    end = 0
    for stride, size in sizes:
        if stride <= end:
            return True
        end += stride * (size - 1)
    return False


def check_gradient(
    name: str, grad: Tensor, grad_x0: Tensor | None, *operands: Tensor | None
) -> None:
    """Raise unless the gradients fit the operands of a step, and these each other."""
    check_step_operator(name, *operands)
    x = operands[0]
    assert x is not None
    check_operand(name, "grad", grad, x.shape, x.dtype, x.device)
    if grad_x0 is not None:
        check_operand(name, "grad_x0", grad_x0, x.shape, history_dtype(x), x.device)


def check_noise(
    name: str,
    seeds: Tensor,
    index: Tensor,
    size: Sequence[int],
    draw: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    """Raise unless noise of this size can be made from the seeds and sample indices."""
    if dtype not in DTYPE_CODES:
        raise TypeError(f"{name}: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    if not 0 <= draw < 2**32:
        raise ValueError(f"{name}: draw must be in [0, 2**32), got {draw}")
    check_identity(name, seeds, index)
    if len(size) < 1 or size[0] != index.shape[0] or any(length < 0 for length in size):
        raise ValueError(
            f"{name}: size must be ({index.shape[0]}, *shape) for so many indices, "
            f"got {tuple(size)}"
        )
    if channels_last and len(size) not in CHANNELS_LAST:
        raise ValueError(
            f"{name}: size must have 4 or 5 dimensions for channels_last, got {tuple(size)}"
        )


def check_sums(
    name: str, x0: Tensor, x: Tensor, out: Tensor, nodes: Tensor | None, log_scales: Tensor | None
) -> None:
    """Raise TypeError or ValueError unless the tensors fit each other."""
    if x0.dtype not in DTYPE_CODES or not x0.dtype == x.dtype == out.dtype:
        raise TypeError(
            f"{name}: x0, x and out must have one floating dtype, "
            f"got {x0.dtype}, {x.dtype} and {out.dtype}"
        )
    if x0.dim() < 2 or x.shape != x0.shape:
        raise ValueError(
            f"{name}: x must have the shape (B, *shape) of x0 {tuple(x0.shape)}, "
            f"got {tuple(x.shape)}"
        )
    doubled = (x0.shape[0], 2 * x0.shape[1], *x0.shape[2:])
    if tuple(out.shape) not in (tuple(x0.shape), doubled):
        raise ValueError(
            f"{name}: out must have the shape of x0 {tuple(x0.shape)} or twice its channels, "
            f"got {tuple(out.shape)}"
        )
    vectors = (("nodes", nodes), ("log_scales", log_scales))
    for label, tensor in vectors:
        if tensor is None:
            continue
        if tensor.dim() != 1 or tensor.dtype != torch.float64:
            raise ValueError(
                f"{name}: {label} must be a float64 vector, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
    if nodes is not None and len(nodes) and out.shape == x0.shape:
        raise ValueError(
            f"{name}: nodes must be left out without a learned variance in out, got {len(nodes)}"
        )
    for label, tensor in (("x0", x0), ("x", x), ("out", out), *vectors):
        if tensor is not None and tensor.device != x0.device:
            raise ValueError(f"{name}: {label} must be on {x0.device}, got {tensor.device}")
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name}: {label} must be a dense tensor, got {tensor.layout}")


def check_elbo_sums(
    name: str,
    x0: Tensor,
    x: Tensor,
    out: Tensor,
    coefficients: Sequence[float],
    nodes: Tensor,
    log_scales: Tensor,
    bin_width: float,
) -> None:
    """Raise unless the operands of `elbo_sums` fit each other."""
    del bin_width
    check_sums(name, x0, x, out, nodes, log_scales)
    if len(coefficients) != 6:
        raise ValueError(
            f"{name}: coefficients must be the 6 numbers p, q, r, g, lo, hi, "
            f"got {len(coefficients)}"
        )


def checked(
    name: str, required: Sequence[int], check: Callable[..., None], function: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the implementation of an operator with its check before it.

    Args:
        name: the operator's name, for messages.
        required: the positions of operands that must be tensors; torch passes None for them too.
        check: raises for operands that do not fit; called with the name before the operands.
        function: the implementation.
    """

    def implementation(*operands: Any) -> Any:
        for position in required:
            if operands[position] is None:
                raise TypeError(f"{name}: operand {position} must be a tensor, got None")
        check(name, *operands)
        return function(*operands)

    return implementation
