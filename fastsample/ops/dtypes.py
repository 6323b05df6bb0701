"""Dtypes that the kernels take, and those that go with them."""

from __future__ import annotations

import torch
from torch import Tensor

# csrc/core/dtype.h holds the same numbers.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def history_dtype(x: Tensor) -> torch.dtype:
    """Dtype of earlier x0's: the arithmetic type of a step on `x`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_dtype(device: torch.device) -> torch.dtype:
    """Dtype of a plan's table on a device: float64, or float32 where there is no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
