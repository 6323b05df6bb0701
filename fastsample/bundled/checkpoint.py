"""Saves and loads model weights in a safetensors file with a checksum and without pickle."""

from __future__ import annotations

import json
import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastsample._support.files import TensorFormat

__all__ = ["load_checkpoint", "load_network", "save_checkpoint"]

_Network = TypeVar("_Network", bound=nn.Module)


def _read_version_1(entry: Any) -> tuple[dict[str, Any], Any]:
    """Return the fields of a version 1 file, and the part of them that its checksum covers."""
    return {**entry, "format": _FORMAT.name}, entry["metadata"]


_FORMAT = TensorFormat(
    "fastsample.checkpoint",
    2,
    "load_checkpoint",
    "path must be a file of save_checkpoint",
    framework="pt",
    version_1_key="fastsample-checkpoint",
    read_version_1=_read_version_1,
)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module | dict[str, Tensor],
    metadata: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights and metadata to a safetensors file that `load_checkpoint` reads.

    Equal weights and metadata give files of equal bytes. The write is atomic.

    Args:
        path: the file to make or replace.
        model: a module, or a state dict.
        metadata: values that JSON can hold.
        dtype: dtype of floating tensors in the file; other tensors keep theirs.

    Raises:
        TypeError: metadata that JSON cannot hold.
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
    """Read the weights and metadata of a file that `save_checkpoint` wrote.

    Nothing in the file is executed. A checksum covers all weights and metadata.

    Args:
        path: the file.

    Returns:
        The state dict on the CPU, floating tensors in float32, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or `save_checkpoint` did not write it.
    """
    fields, tensors = _FORMAT.load(path)
    with _FORMAT.reading(path):
        metadata = fields["metadata"]
    # Tensors are popped one by one, so that memory never holds all of them in both dtypes.
    return {k: _cast(tensors.pop(k), torch.float32) for k in list(tensors)}, metadata


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another floating dtype; integers and booleans are not changed."""
    return value.to(dtype) if value.is_floating_point() else value


def load_network(
    function: str, path: str | os.PathLike[str], network: type[_Network]
) -> tuple[_Network, dict[str, Any]]:
    """Load a network of a given class and the metadata of its file.

    Args:
        function: the caller's name, for messages.
        path: a file of `save_checkpoint` whose metadata hold the network's class name as "model"
            and its arguments as "config".
        network: the class.

    Returns:
        The network, in evaluation mode on the CPU in float32, and the metadata.

    Raises:
        ValueError: the file is damaged, is no checkpoint, or holds another network.
    """
    state, metadata = load_checkpoint(path)
    kind = metadata.get("model")
    if kind != network.__name__:
        raise ValueError(
            f"{function}: metadata['model'] must be {network.__name__!r}, got {kind!r}"
        )
    if not isinstance(metadata.get("config"), dict):
        raise ValueError(
            f"{function}: metadata['config'] must be a dict, got {metadata.get('config')!r}"
        )
    try:
        # A damaged config may ask for any size, so shapes are compared before memory is taken.
        with torch.device("meta"):
            network(**metadata["config"]).load_state_dict(state, assign=True)
        # Built in float32 on the CPU, so that other defaults of torch do not round the weights.
        with torch.device("cpu"):
            model = network(**metadata["config"]).float()
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{function}: path must hold weights that fit their config, got {reason}"
        ) from error
    return model.eval(), metadata
