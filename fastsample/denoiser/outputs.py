"""What a network gives back: taken out of its wrapping, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def unpacked(output: Any) -> Tensor:
    """The tensor itself, or the one inside a diffusers output, a dictionary or a tuple."""
    if isinstance(output, Tensor):
        return output
    inner = getattr(output, "sample", None)
    if inner is None and isinstance(output, Mapping):
        inner = output.get("sample")
    if inner is None and isinstance(output, (tuple, list)) and output:
        inner = output[0]
    if not isinstance(inner, Tensor):
        raise TypeError(
            f"Denoiser: the model's output must be a tensor, got {type(output).__name__}"
        )
    return inner


def check_output(x: Tensor, output: Tensor, *, learned: bool) -> None:
    """Refuse an output that does not belong to ``x (B, *shape)``.

    Args:
        x: what the network was given.
        output: what it gave back.
        learned: whether its second half is to be a learned variance.
    """
    wide = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if output.shape != (wide if learned else x.shape):
        remedy = ""
        if output.shape == wide:
            remedy = '; if its second half is a learned variance, pass variance="learned_range"'
        elif output.shape == x.shape:
            remedy = '; a variance="learned_range" network gives [prediction | v]'
        raise ValueError(
            "Denoiser: the model's output must have shape "
            f"{tuple(wide if learned else x.shape)} for x {tuple(x.shape)}, "
            f"got {tuple(output.shape)}{remedy}"
        )
    if not output.is_floating_point():
        raise TypeError(
            f"Denoiser: the model's output must be a floating tensor, got {output.dtype}"
        )
    if output.device != x.device:
        raise ValueError(f"Denoiser: the model's output must be on {x.device}, got {output.device}")
