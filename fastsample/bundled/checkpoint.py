"""Model weights in one safetensors file: no pickle, a checksum, an atomic write."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from fastsample._support.files import TensorFormat

__all__ = ["load_checkpoint", "save_checkpoint"]


def _first(entry: Any) -> tuple[dict[str, Any], Any]:
    """Version 1, whose checksum left out the version."""
    return {**entry, "format": _FORMAT.name}, entry["metadata"]


_FORMAT = TensorFormat(
    "fastsample.checkpoint",
    2,
    "load_checkpoint",
    "path must be a file of save_checkpoint",
    framework="pt",
    version_1_key="fastsample-checkpoint",
    read_version_1=_first,
)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights and metadata to a safetensors file that `load_checkpoint` reads.

    Equal weights and metadata make equal bytes. The file appears complete or not at all.

    Args:
        path: the file to make or replace.
        model: a module, or a state dict.
        metadata: whatever JSON can hold.
        dtype: floating dtype of the weights in the file; integer tensors keep theirs.

    Raises:
        TypeError: the metadata do not fit into JSON.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_checkpoint: metadata must fit into JSON, got {error}") from error
    tensors = {
        name: _cast(value.detach().cpu(), dtype).contiguous() for name, value in state.items()
    }
    _FORMAT.save(path, {"metadata": metadata}, tensors)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_checkpoint`: weights on the CPU in float32, and the metadata.

    Nothing in the file is executed. Every byte of weights and metadata is covered by the checksum.

    Args:
        path: a file.

    Returns:
        The state dict, floating tensors as float32, and the metadata as written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or was written by something else.
    """
    fields, tensors = _FORMAT.load(path)
    with _FORMAT.reading(path):
        metadata = fields["metadata"]
    # Taken out one by one: the file's dtype and float32 are not both held of all.
    return {k: _cast(tensors.pop(k), torch.float32) for k in list(tensors)}, metadata


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating dtype; integers and booleans as they are."""
    return value.to(dtype) if value.is_floating_point() else value
