"""Which samples a batch holds: the seeds and global indices that their noise is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import check_integer
from fastsample.denoiser.trees import batch_size_of


class Identity(NamedTuple):
    """Which samples a batch holds: what their noise is a function of."""

    seeds: Tensor
    """int64, one element or `(B,)`."""
    index: Tensor
    """int64 `(B,)`."""


def agreed_batch(num_samples, start, noise, cond, sample_index, seed) -> int:
    """The number of samples that the arguments agree on."""
    sizes = {"num_samples": num_samples, "cond": batch_size_of(cond)}
    if num_samples is not None:
        sizes["num_samples"] = check_integer("sample", "num_samples", num_samples, 0)
    for name, tensor, axis in (("start", start, 0), ("noise", noise, 1)):
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"sample: {name} must be a tensor, got {type(tensor).__name__}")
            if tensor.dim() > axis:
                sizes[name] = tensor.shape[axis]
    for name, value in (("sample_index", sample_index), ("seed", seed)):
        if isinstance(value, (Sequence, Tensor, np.ndarray)) and np.ndim(value) == 1:
            sizes[name] = len(value)
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"sample: num_samples must be one number, got {known}")
    return next(iter(known.values()), 1)


def make_identity(
    function: str, seed: Any, sample_index: Any, batch: int, device: torch.device
) -> Identity:
    """Seeds and global indices of the samples, on the device."""
    if isinstance(seed, (Sequence, Tensor, np.ndarray)) and np.ndim(seed) > 1:
        raise ValueError(f"{function}: seed must be a number or a vector, got {np.ndim(seed)} dims")
    many = np.ndim(seed) == 1
    words = [_signed(function, value) for value in (seed if many else [seed])]
    if sample_index is None:
        index = torch.zeros(batch, dtype=torch.int64) if many else torch.arange(batch)
    elif np.ndim(sample_index) == 0:
        first = check_integer(function, "sample_index", _item(sample_index), 0, 2**63 - 1 - batch)
        index = torch.arange(first, first + batch)
    else:
        if np.ndim(sample_index) != 1:
            raise ValueError(
                f"{function}: sample_index must be a number or a vector, "
                f"got {np.ndim(sample_index)} dims"
            )
        index = _checked_index(function, sample_index)
    seeds = torch.tensor(words, dtype=torch.int64, device=device)  # int64 even if there are none
    return Identity(seeds, index.to(device, torch.int64))


def _checked_index(function: str, sample_index: Any) -> Tensor:
    """Indices of samples as int64, none below 0."""
    if isinstance(sample_index, Tensor) and sample_index.dtype == torch.int64:
        least = int(sample_index.min()) if len(sample_index) else 0
        check_integer(function, "sample_index", least, 0)
        return sample_index
    numbers = [
        check_integer(function, "sample_index", _item(value), 0, 2**63 - 1)
        for value in sample_index
    ]
    return torch.tensor(numbers, dtype=torch.int64)


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def _signed(function: str, seed: Any) -> int:
    """A 64-bit seed as the int64 of the same bits."""
    value = check_integer(function, "seed", _item(seed), 0, 2**64 - 1)
    return value - 2**64 if value >= 2**63 else value
