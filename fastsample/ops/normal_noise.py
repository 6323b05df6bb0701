"""The function `noise`, which generates normal noise from seeds and sample indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsample.ops import library, native
from fastsample.ops.checks import check_identity
from fastsample.ops.direct import is_plain
from fastsample.ops.draws import START_DRAW
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.ops.launch import CHANNELS_LAST


def noise(
    seeds: Tensor,
    index: Tensor,
    shape: Sequence[int],
    *,
    draw: int = START_DRAW,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Return standard normal noise ``(B, *shape)`` that does not depend on the batch.

    Each element is a pure function of (seed, sample index, draw, element number): Philox4x32-10
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and Box-Muller. It is the
    same on every device, in every batch and memory format.

    Args:
        seeds: int64, one element or ``(B,)``: the bits of each sample's 64-bit seed.
        index: int64 ``(B,)``: global sample indices.
        shape: shape of one sample.
        draw: which of the sample's noises, in ``[0, 2**32)``: a row number, or one of
            `fastsample.ops.draws`.
        dtype: float32, bfloat16, float16 or float64 (float32 values, widened).
        channels_last: memory format of the result (3 or 4 sample dimensions).

    Raises:
        TypeError: another dtype.
        ValueError: mismatched devices or sizes.
    """
    if dtype not in DTYPE_CODES:
        raise TypeError(f"noise: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
    if not isinstance(draw, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"noise: draw must be an integer, got {draw!r}")
    if not 0 <= draw < 2**32:
        raise ValueError(f"noise: draw must be in [0, 2**32), got {draw}")
    check_identity("noise", seeds, index)
    size = (index.shape[0], *shape)
    if channels_last and len(size) not in CHANNELS_LAST:
        raise ValueError(
            f"noise: shape must have 3 or 4 dimensions for channels_last, got {tuple(shape)}"
        )
    if is_plain(seeds, index):
        return native.noise(seeds, index, size, draw, dtype, channels_last)
    return library.noise_op(seeds, index, size, draw, dtype, channels_last)
