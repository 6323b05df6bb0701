"""The function `noise`, which generates normal noise from seeds and sample indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsample.ops import library
from fastsample.ops.checks import check_identity
from fastsample.ops.dtypes import DTYPE_CODES
from fastsample.ops.launch import CHANNELS_LAST

NOISE_VERSION = 2
"""The version of the function from (seed, sample index, draw, element) to a normal number.

Results that depend on generated noise can be made again only under the same version. Version 1 was
Box-Muller with an angle over the full turn. Version 2 takes an angle within an eighth of a turn and
the quarter from two bits of the same word.
"""

START_DRAW = 0xFFFFFFFF
"""The value of `draw` that gives the starting noise x_T; draw k is the noise of row k."""


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
        draw: which of the sample's noises, in ``[0, 2**32)``: a row number, or `START_DRAW` for
            x_T.
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
    return library.noise_op(seeds, index, size, draw, dtype, channels_last)
