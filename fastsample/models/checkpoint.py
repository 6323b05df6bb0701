"""Model weights in one safetensors file: no pickle, a checksum, an atomic write."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "fastsample-checkpoint"
_VERSION = "1"


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights and metadata to a safetensors file that `load_checkpoint` reads.

    The header's metadata holds `format`, `version`, `metadata` (JSON) and `sha256` over the JSON
    and every tensor; safetensors itself has no checksum. The file appears complete or not at
    all: it is written beside its place and then renamed.

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
        text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_checkpoint: metadata must fit into JSON, got {error}") from error
    header = {"format": _FORMAT, "version": _VERSION, "metadata": text}
    header["sha256"] = _digest(text, tensors)
    data = safetensors.torch.save(tensors, header)

    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; weights are to be read by whoever may read the package.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"load_checkpoint: path must be a file of save_checkpoint, "
            f"got {path} with format {header.get('format')!r}"
        )
    if header.get("version") != _VERSION:
        raise ValueError(
            f"load_checkpoint: version must be {_VERSION!r}, got {header.get('version')!r}; "
            "the file needs another version of fastsample"
        )
    text = header.get("metadata", "")
    found = _digest(text, tensors)
    if header.get("sha256") != found:
        raise ValueError(
            f"load_checkpoint: path must have the checksum {header.get('sha256')}, "
            f"got {found}; {path} is damaged, copy or download it again"
        )
    return {name: _cast(value, torch.float32) for name, value in tensors.items()}, json.loads(text)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating dtype; integers and booleans as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the metadata and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
