"""Determines the number of samples, and the seeds and sample indices that fix their noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import check_integer
from fastsample._support.tensors import check_dense
from fastsample.denoiser.normalise import batch_size_of

MOST_SAMPLES = 2**48
"""More samples than any memory holds, and few enough for torch's 64-bit sizes and indices."""


class Identity(NamedTuple):
    """The seed and the index of each sample, which together determine the sample's noise."""

    seeds: Tensor
    """The bits of the 64-bit seeds as int64: one for all samples, or `(B,)`."""
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)
    """The global indices of the samples as int64 `(B,)`."""


def new_seed() -> int:
    """Return a fresh seed in [0, 2^63) from torch's CPU generator.

    ``torch.manual_seed`` therefore determines it, as it determines all random numbers of PyTorch.
    """
    return _drawn(None)


def as_seed(function: str, seed: Any) -> Any:
    """Return the seed itself; a fresh one for None, and one drawn from a `torch.Generator`.

    Args:
        function: the caller's name, for messages.
        seed: a 64-bit seed, one per sample, a generator, or None for `new_seed`.
    """
    if seed is None or isinstance(seed, torch.Generator):
        if torch.compiler.is_compiling():  # a traced number would be the same in every call
            return cast(Any, torch.compiler.disable(_drawn))(seed)  # pyright: ignore[reportUnknownMemberType]
        return _drawn(seed)
    return seed


def _drawn(generator: torch.Generator | None) -> int:
    """Return a seed drawn from a generator, by default torch's CPU generator."""
    device = "cpu" if generator is None else generator.device
    number = torch.randint(2**63 - 1, (), generator=generator, device=device)
    return int(number)


def agreed_batch(
    function: str, num_samples: Any, start: Any, noise: Any, cond: Any, sample_index: Any, seed: Any
) -> int:
    """Return the number of samples on which the arguments of a call agree; 1 if none tells.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: arguments for different numbers of samples.
    """
    if start is noise is cond is sample_index is None and isinstance(seed, int | None):
        # The usual call: only `num_samples` can tell.
        count = 1 if num_samples is None else num_samples
        return _checked_count(function, count)
    sizes: dict[str, int | None] = {"num_samples": num_samples, "cond": batch_size_of(cond)}
    if num_samples is not None:
        sizes["num_samples"] = _checked_count(function, num_samples)
    for name, tensor, axis in (("start", start, 0), ("noise", noise, 1)):
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{function}: {name} must be a tensor, got {type(tensor).__name__}")
            check_dense(function, name, tensor)
            if tensor.dim() > axis:
                sizes[name] = tensor.shape[axis]
    for name, value in (("sample_index", sample_index), ("seed", seed)):
        if _is_sequence(value) and np.ndim(value) == 1:
            sizes[name] = len(value)
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise ValueError(f"{function}: num_samples must be one number, got {known}")
    return next(iter(known.values()), 1)


def _checked_count(function: str, count: Any) -> int:
    """Return the number of samples; raise unless it is an integer in [0, `MOST_SAMPLES`]."""
    number = check_integer(function, "num_samples", count, 0)
    if number > MOST_SAMPLES:
        raise ValueError(
            f"{function}: num_samples must be at most 2^48, which is more than any memory holds, "
            f"got {number}; draw many samples in several calls with sample_index="
        )
    return number


def make_identity(
    function: str, seed: Any, sample_index: Any, batch: int, device: torch.device
) -> Identity:
    """Return the seeds and global indices of the samples of a batch, on a device.

    Args:
        function: the caller's name, for messages.
        seed: 64-bit seed, or one per sample.
        sample_index: global index of each sample, or of the first one. None counts from 0, or is 0
            for every sample with one seed per sample.
        batch: number of samples.
        device: the device.

    Raises:
        TypeError: seeds or indices that are no integers.
        ValueError: seeds or indices out of range, of more than one axis, or not one per sample.
    """
    if sample_index is None and isinstance(seed, int):  # the usual call
        bits = _as_int64(function, seed)
        seeds = torch.tensor([bits], dtype=torch.int64, device=device)
        return Identity(seeds, torch.arange(batch, device=device))
    if _is_sequence(seed) and np.ndim(seed) > 1:
        raise ValueError(f"{function}: seed must be a number or a vector, got {np.ndim(seed)} dims")
    many = np.ndim(seed) == 1
    given: dict[str, Any] = {"seed": seed, "sample_index": sample_index}
    for name, value in given.items():
        count = len(value) if _is_sequence(value) and np.ndim(value) == 1 else batch
        if count != batch:  # kernels read as many as there are samples
            raise ValueError(
                f"{function}: {name} must be one number or one per sample, got {count} for "
                f"{batch} samples"
            )
    seed_bits = [_as_int64(function, value) for value in (seed if many else [seed])]
    if sample_index is None:
        index = torch.zeros(batch, dtype=torch.int64, device="cpu")
        if not many:
            index = torch.arange(batch, device="cpu")
    elif np.ndim(sample_index) == 0:
        first = check_integer(function, "sample_index", _item(sample_index), 0, 2**63 - 1 - batch)
        index = torch.arange(first, first + batch, device="cpu")
    else:
        if np.ndim(sample_index) != 1:
            raise ValueError(
                f"{function}: sample_index must be a number or a vector, "
                f"got {np.ndim(sample_index)} dims"
            )
        index = _checked_index(function, sample_index)
    # The dtype is given because torch makes a float tensor of an empty list.
    seeds = torch.tensor(seed_bits, dtype=torch.int64, device=device)
    return Identity(seeds, index.to(device, torch.int64))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (Sequence, Tensor, np.ndarray))


def _checked_index(function: str, sample_index: Any) -> Tensor:
    """Return the sample indices as an int64 tensor; raise ValueError for a negative one."""
    if isinstance(sample_index, Tensor) and sample_index.dtype == torch.int64:
        least = int(sample_index.min()) if len(sample_index) else 0
        check_integer(function, "sample_index", least, 0)
        return sample_index
    numbers = [
        check_integer(function, "sample_index", _item(value), 0, 2**63 - 1)
        for value in sample_index
    ]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _item(value: Any) -> Any:
    """Return a number of torch or NumPy as a Python number, and anything else as it is."""
    wrapped: Any = value
    return wrapped.item() if isinstance(value, (Tensor, np.generic)) else value


def _as_int64(function: str, seed: Any) -> int:
    """Return the int64 that has the same bits as a seed in [0, 2^64)."""
    value = check_integer(function, "seed", _item(seed), 0, 2**64 - 1)
    return value - 2**64 if value >= 2**63 else value
