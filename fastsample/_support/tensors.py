"""Functions that check the devices and tensors that users pass."""

from __future__ import annotations

import torch
from torch import Tensor


def make_device(function: str, device: torch.device | str | None) -> torch.device | None:
    """Return the device with its index (cuda:0); raise if it is not available; None stays None."""
    if device is None:
        return None
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{function}: device must be the name of a device, got {device!r}"
        ) from None
    if named.type == "cpu":
        return torch.device("cpu")  # "cpu:0" is the same device, but compares unequal
    if named.type == "meta":
        raise ValueError(f"{function}: device must hold values, got meta")
    try:
        return torch.empty(0, device=named).device  # "cuda" becomes "cuda:0", as tensors report it
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{function}: device must be there, got {device}; {reason}") from None


def check_dense(function: str, name: str, tensor: Tensor, remedy: str | None = None) -> None:
    """Raise TypeError for a sparse or nested tensor.

    Args:
        function: the caller's name, for the message.
        name: the argument.
        tensor: its value.
        remedy: what the message ends with; None names the conversion to a dense tensor.
    """
    if tensor.layout == torch.strided and not tensor.is_nested:
        return
    kind = "a nested tensor" if tensor.is_nested else f"{tensor.layout}"
    convert = "to_padded_tensor(0.0)" if tensor.is_nested else "to_dense()"
    remedy = f"pass {name}.{convert}" if remedy is None else remedy
    raise TypeError(f"{function}: {name} must be a dense tensor, got {kind}; {remedy}")


def check_tensor(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    function: str = "sample",
) -> None:
    """Raise unless the tensor has this shape, dtype and device; do nothing for None."""
    if tensor is None:
        return
    check_dense(function, name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{function}: {name} must be on {device}, got {tensor.device}")
