"""Writes samples to one image file, arranged in a grid (imports Pillow when it is used)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor


def save_grid(
    samples: Tensor,
    path: str | os.PathLike[str],
    *,
    columns: int = 10,
    scale: int = 1,
    gap: int = 2,
) -> Path:
    """Write samples as a grid of images, row by row.

    Args:
        samples: `(B, C, H, W)` with C = 1 or 3, in [-1, 1]; values beyond are clipped.
        path: the file, whose suffix decides the format; its folder is made.
        columns: images per row, at least 1.
        scale: width and height of a sample's pixel in the file, in pixels.
        gap: pixels between two images.

    Returns:
        The absolute path.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: samples of another shape.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "save_grid: Pillow must be installed to write images, got none; "
            "pip install 'fastsample[demo]'"
        ) from None
    if samples.dim() != 4 or samples.shape[1] not in (1, 3) or samples.shape[0] == 0:
        raise ValueError(
            "save_grid: samples must be (B, C, H, W) with B > 0 and C = 1 or 3, "
            f"got {tuple(samples.shape)}"
        )
    levels = (samples.detach().float().cpu().clamp(-1.0, 1.0) + 1.0) * 127.5
    images = levels.round().to(torch.uint8).permute(0, 2, 3, 1)
    images = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = (count + columns - 1) // columns
    canvas = torch.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels),
        96,
        dtype=torch.uint8,
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = image
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas.squeeze(-1).numpy()).save(target)
    return target
