"""Loads the weights of a checkpoint of improved-diffusion or guided-diffusion into a network."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastsample._support.torch_files import fault_of

_NAME = "load_weights"


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load the weights in a file such as `model500000.pt` or `ema_0.9999_500000.pt`, and no more.

    The file is read with ``torch.load(weights_only=True)``, which runs no code of the file. All
    weights of the module must be in it and no others; a prefix "module." that all of them have, as
    distributed training writes it, is removed. Names, shapes and values are checked before any
    weight is changed.

    Args:
        module: the network; its weights are overwritten, in their own dtype and on their device.
        path: the file.

    Returns:
        The module.

    Raises:
        TypeError: no module, or no path.
        FileNotFoundError: no such file.
        ValueError: a file of something else, or of a network of another size.
    """
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{_NAME}: module must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{_NAME}: path must be a path, got {type(path).__name__}")
    shown = repr(os.fspath(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_NAME}: path must be a file, got {shown}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(
            f"{_NAME}: path must be a checkpoint of tensors alone, which "
            f"torch.load(weights_only=True) reads, got {shown}, {fault_of(path, error)}; save "
            "network.state_dict() alone"
        ) from None
    weights = _without_prefix(_state_dict(content, shown))
    _check_fit(module, weights, shown)
    module.load_state_dict(dict(weights))
    return module


def _state_dict(content: Any, shown: str) -> Mapping[str, Tensor]:
    """Return the content of a file if it is a state dict; ValueError otherwise."""
    rule = f"{_NAME}: path must be a file of a network's state_dict"
    if not isinstance(content, Mapping):
        raise ValueError(f"{rule}, got {shown} with a {type(content).__name__}")
    entries = cast("Mapping[Any, Any]", content)
    if set(entries) == {"state", "param_groups"}:
        raise ValueError(f"{rule}, got {shown} with the state of an optimizer (opt*.pt)")
    others = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if others or not entries:
        raise ValueError(
            f"{rule}, got {shown} with {list(map(str, entries))[:6]}; if one of them is the "
            "state_dict, save that alone"
        )
    return cast("Mapping[str, Tensor]", entries)


def _without_prefix(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights without the "module." that DistributedDataParallel puts before names."""
    if not all(name.startswith("module.") for name in weights):
        return weights
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _check_fit(module: nn.Module, weights: Mapping[str, Tensor], shown: str) -> None:
    """Raise ValueError unless names and shapes are the module's, and all values finite."""
    own = cast("Mapping[str, Tensor]", module.state_dict())
    rule = f"{_NAME}: path must hold the weights of this {type(module).__name__}"
    remedy = "; make the network with the flags that it was trained with"
    missing, others = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or others:
        raise ValueError(
            f"{rule}, got {shown} without {len(missing)} of its {len(own)} names {missing[:2]} and "
            f"with {len(others)} others {others[:2]}{remedy}"
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{rule}, whose {name} has shape {tuple(own[name].shape)}, got {shown} with "
                f"{tuple(value.shape)}{remedy}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{rule}, finite numbers, got {shown} with NaN or infinity in {name}")
