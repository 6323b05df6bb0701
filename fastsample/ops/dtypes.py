"""The dtypes that the kernels accept and return."""

from __future__ import annotations

import torch
from torch import Tensor

# The kernels read these codes; csrc/core/dtype.h must hold the same numbers.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def history_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a step on `x` computes and returns x0: float32 or float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a plan's rows on a device: float64, or float32 if it has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
