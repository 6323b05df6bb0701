"""The dtypes of the operands that kernels accept."""

from __future__ import annotations

import torch
from torch import Tensor

# csrc/core/dtype.h holds the same numbers.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def history_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the x0's of a step on `x`, which is the dtype it computes in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a plan's table: float64, or float32 on devices without float64."""
    return torch.float32 if device.type == "mps" else torch.float64
