"""Devices and tensors as arguments: named or given by users, and checked."""

from __future__ import annotations

import torch


def make_device(function: str, device: torch.device | str | None) -> torch.device | None:
    """The device, with its index, checked to be there; None stays None."""
    if device is None:
        return None
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{function}: device must be the name of a device, got {device!r}"
        ) from None
    if place.type == "cpu":
        return torch.device("cpu")  # "cpu:0" is the same place, but compares unequal
    if place.type == "meta":
        raise ValueError(f"{function}: device must hold values, got meta")
    try:
        return torch.empty(0, device=place).device  # with the index that tensors there report
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{function}: device must be there, got {device}; {reason}") from None


def check_tensor(name, tensor, shape, dtype, device, function="sample") -> None:
    """Refuse a tensor of another shape, dtype or device; None passes."""
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{function}: {name} must be on {device}, got {tensor.device}")
