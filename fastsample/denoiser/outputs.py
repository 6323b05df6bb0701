"""Functions that take a network's output out of its container and check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor


def unpacked(output: Any) -> Tensor:
    """Return the tensor, or the one inside a diffusers output, a dictionary or a tuple."""
    if isinstance(output, Tensor):
        return output
    inner = getattr(output, "sample", None)
    if inner is None and isinstance(output, Mapping):
        inner = cast(Mapping[str, Any], output).get("sample")
    if inner is None and isinstance(output, (tuple, list)) and output:
        inner = cast(list[Any], output)[0]
    if not isinstance(inner, Tensor):
        got = type(cast(object, output)).__name__
        raise TypeError(f"Denoiser: the model's output must be a tensor, got {got}")
    return inner


def check_output(x: Tensor, output: Tensor, *, learned: bool) -> None:
    """Raise TypeError or ValueError for an output that does not fit the input ``x (B, *shape)``.

    Args:
        x: the network's input.
        output: the network's output for it.
        learned: whether the output has twice the channels, the second half a learned variance.
    """
    shape = x.shape
    if (
        output.shape == ((shape[0], 2 * shape[1], *shape[2:]) if learned else shape)
        and output.is_floating_point()
        and output.device == x.device
    ):
        return
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
    raise ValueError(f"Denoiser: the model's output must be on {x.device}, got {output.device}")
