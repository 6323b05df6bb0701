"""Converts the conditions that users pass: numbers and arrays become tensors on a device."""

# Values have any type; after isinstance, pyright does not know the types of their elements.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample._support.tensors import check_dense
from fastsample.denoiser.leaves import entry_count, to_device
from fastsample.denoiser.trees import leaves, tuple_like


def batch_size_of(cond: Mapping[str, Any] | None) -> int | None:
    """Return the number of samples that the conditions are for; None if no value tells."""
    if not isinstance(cond, Mapping):  # `Conditions` raises the error for anything else
        return None
    for _, leaf in leaves(cond, "cond"):
        size = len(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else entry_count(leaf)
        if size is not None:
            return size
    return None


def normalised(function: str, path: str, tree: Any, device: torch.device | None) -> Any:
    """Return the conditions with numbers and arrays converted to tensors on a device.

    Args:
        function: the caller's name, for messages.
        path: where the tree is, for messages: "cond" and "uncond" must be mappings.
        tree: what the user passed.
        device: where tensors are moved to; None leaves them where they are.

    Raises:
        TypeError: conditions that are no mapping, or a list that mixes numbers with other things.
    """
    if path in ("cond", "uncond") and not isinstance(tree, Mapping):
        raise TypeError(
            f"{function}: {path} must be a mapping of keyword arguments, got {type(tree).__name__}"
        )
    if isinstance(tree, Mapping):
        return {
            name: normalised(function, f"{path}[{name!r}]", value, device)
            for name, value in tree.items()
        }
    if isinstance(tree, tuple):
        parts = enumerate(tree)
        return tuple_like(
            tree, [normalised(function, f"{path}[{i}]", value, device) for i, value in parts]
        )
    if isinstance(tree, list) and not all(map(_is_numeric, tree)):
        if any(map(_is_numeric, tree)) and not all(map(_is_array, tree)):
            raise TypeError(
                f"{function}: {path} must hold numbers or none in a list, got {tree!r:.80}"
            )
        entries = [
            _as_tensor(function, f"{path}[{i}]", v) if isinstance(v, np.ndarray) else v
            for i, v in enumerate(tree)
        ]
        if all(isinstance(value, Tensor) and value.dim() == 0 for value in entries):
            return to_device(torch.stack(entries), device)
        return to_device(entries, device)
    return to_device(_as_tensor(function, path, tree), device)


def _is_numeric(value: Any) -> bool:
    """Return whether the value is a number, or nested lists of numbers (which become a tensor)."""
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, Tensor))


def _as_tensor(function: str, path: str, value: Any) -> Any:
    """Return numbers and arrays as a tensor, and anything else as it is.

    Arrays are copied, since the caller may write to them later.
    """
    if isinstance(value, Tensor):
        check_dense(
            function, path, value, "pass a list of one tensor per sample, or fs.shared(value)"
        )
    if not isinstance(value, (int, float, list, np.ndarray, np.number)) or isinstance(value, bool):
        return value
    try:
        # Copy arrays to C order first, since torch refuses negative strides.
        array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
        return torch.tensor(array, device="cpu")  # whatever torch's default device is
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{function}: {path} must hold numbers, got {value!r:.80} ({error})"
        ) from None
