"""Model weights in one safetensors file: no pickle, a checksum, an atomic write."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastsample._support.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "fastsample-checkpoint"
_VERSION = 1


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights and metadata to a safetensors file that `load_checkpoint` reads.

    The header's metadata has one entry, "fastsample-checkpoint": JSON with `version`, `metadata`
    and `sha256` over the metadata and every tensor, since safetensors itself has no checksum.
    Equal weights and metadata make equal bytes. The file appears complete or not at all: it is
    written beside its place and then renamed.

    Args:
        path: the file to make or replace; its folder must exist.
        model: a module, or a state dict.
        metadata: whatever JSON can hold.
        dtype: floating dtype of the weights in the file; integer tensors keep theirs.

    Raises:
        TypeError: the metadata do not fit into JSON.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {
        name: _cast(value.detach().cpu(), dtype).contiguous() for name, value in state.items()
    }
    try:
        # Through JSON and back, so that the checksum is of what a reader will find.
        metadata = json.loads(_canonical(metadata))
        digest = _digest(metadata, tensors)
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_checkpoint: metadata must fit into JSON, got {error}") from error
    content = {"metadata": metadata, "sha256": digest, "version": _VERSION}
    # One entry: safetensors writes several in an order that changes from run to run.
    data = safetensors.torch.save(tensors, {_FORMAT: _canonical(content)})

    write_atomically(path, data)


def load_checkpoint(path: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_checkpoint`: weights on the CPU in float32, and the metadata.

    Nothing in the file is executed. Every byte of weights and metadata is covered by the checksum.

    Args:
        path: a path, or anything with `read_bytes` (a resource inside a package).

    Returns:
        The state dict, floating tensors as float32, and the metadata as written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or was written by something else.
    """
    data = (path if hasattr(path, "read_bytes") else Path(path)).read_bytes()
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"load_checkpoint: path must be a complete safetensors file, got {path} ({error}); "
            "copy or download it again"
        ) from error
    # safetensors' layout: 8 bytes of header length, little-endian, then the header as JSON.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if _FORMAT not in header:
        raise ValueError(
            f"load_checkpoint: path must be a file of save_checkpoint, got {path} with the "
            f"metadata {sorted(header)}"
        )
    try:
        content = json.loads(header[_FORMAT])
        version, metadata, digest = (content[key] for key in ("version", "metadata", "sha256"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"load_checkpoint: path must have an intact header, got {path} ({error!r}); "
            "copy or download it again"
        ) from error
    if version != _VERSION:
        raise ValueError(
            f"load_checkpoint: version must be {_VERSION}, got {version!r}; "
            "the file needs another version of fastsample"
        )
    found = _digest(metadata, tensors)
    if digest != found:
        raise ValueError(
            f"load_checkpoint: path must have the checksum {digest}, got {found}; "
            f"{path} is damaged, copy or download it again"
        )
    return {name: _cast(value, torch.float32) for name, value in tensors.items()}, metadata


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating dtype; integers and booleans as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def _canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _digest(metadata: Any, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the metadata and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(_canonical(metadata).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
