"""Makes batches of training data: batch i depends on (seed, i) only, and processes share it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastsample._support.tensors import (
    check_tensor,
)
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.denoiser.trees import Shared
from fastsample.training.randomness import RandomStreams


class Batch(NamedTuple):
    """Holds this process's share of an iteration's batch."""

    x0: Tensor
    """Data `(n, *shape)` on the model's device."""
    cond: Conditions
    """The network's keyword arguments for these samples."""


class Batches:
    """Makes an endless sequence of batches of a data set.

    The data are shuffled anew in every epoch, and the shuffled epochs one after the other are cut
    into batches. Process r of w takes the samples r, r + w, r + 2w, ... of a batch.

    Args:
        denoiser: the model; batches go to its device.
        data: tensor `(N, *shape)`, or a data set whose items are tensors `(*shape)`, or mappings
            with "x0" and the network's keyword arguments.
        cond: with a tensor: keyword arguments of the network, N entries or a number each.
        cond_dropout: share of samples, in [0, 1], whose condition is replaced by the model's
            ``uncond``, for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598).
        batch_size: samples of a batch, all processes together.
        seed: seed of the shuffling and of the dropped conditions.
        workers: processes that load items of a data set; 0 loads them in this process.
        process: (rank, number of processes).

    Attributes:
        count: N, the number of samples.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor | Dataset[Any],
        cond: Mapping[str, Any] | None,
        *,
        cond_dropout: float,
        batch_size: int,
        seed: int,
        workers: int,
        process: tuple[int, int],
    ) -> None:
        self.denoiser, self.data = denoiser, data
        self.cond_dropout, self.batch_size, self.seed = cond_dropout, batch_size, seed
        self.workers, self.process = workers, process
        self._shuffled: tuple[int, npt.NDArray[np.int64]] | None = None
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise TypeError(
                "Trainer: data must be a tensor or a data set with a length and numbered items, "
                f"got {type(data).__name__}; a stream cannot be resumed where it was left"
            )
        if isinstance(data, Tensor) and data.dim() == 0:
            raise ValueError("Trainer: data must have shape (N, *shape), got a number")
        self.count = len(cast("Sized", data))
        if self.count == 0:
            raise ValueError("Trainer: data must hold at least one sample, got none")
        if isinstance(data, Tensor):
            self._check(data)
            self.cond = Conditions("Trainer", cond, batch=self.count)
        elif cond is not None:
            raise ValueError(
                f"Trainer: cond must be None with a data set, got {sorted(cond)}; its items hold "
                'it beside "x0"'
            )
        else:
            self._check(_collate([data[0]])[0])
        if batch_size % process[1]:
            raise ValueError(
                f"Trainer: batch_size must be a multiple of the {process[1]} processes, "
                f"got {batch_size}"
            )
        if cond_dropout:
            self._check_cond_dropout()

    def indices(self, iteration: int) -> npt.NDArray[np.int64]:
        """Return the indices into the data of this process's share of a batch."""
        rank, world = self.process
        first = iteration * self.batch_size
        positions = np.arange(first + rank, first + self.batch_size, world)
        indices = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(positions // self.count).tolist():
            in_epoch = positions // self.count == epoch
            indices[in_epoch] = self._shuffle(epoch)[positions[in_epoch] % self.count]
        return indices

    def starting_at(self, first: int) -> Iterator[Batch]:
        """Yield the batches of the iterations from `first` on, without end."""
        if isinstance(self.data, Tensor):
            for iteration in itertools.count(first):
                indices = self.indices(iteration)
                x0 = self.data[torch.as_tensor(indices, device=self.data.device)]
                yield self._batch(iteration, x0, self.cond.select(indices))
        batch_sampler: Any = (self.indices(i).tolist() for i in itertools.count(first))
        loader = DataLoader(
            cast("Dataset[Any]", self.data),
            batch_sampler=batch_sampler,
            num_workers=self.workers,
            collate_fn=_collate,
        )
        for iteration, (x0, cond) in zip(itertools.count(first), loader, strict=False):
            yield self._batch(iteration, x0, Conditions("Trainer", cond, batch=len(x0)))

    def _batch(self, iteration: int, x0: Tensor, cond: Conditions) -> Batch:
        x0 = x0.to(self.denoiser.device)
        if not isinstance(self.data, Tensor):  # A tensor has been checked as a whole.
            self._check(x0)
        cond = cond.part(0, x0)
        if self.cond_dropout and cond.mapping:
            rank, world = self.process
            generator = RandomStreams(self.seed, iteration).generator("condition")
            uniform = generator.random(self.batch_size)[rank::world]
            dropped = torch.as_tensor(uniform < self.cond_dropout, device=x0.device)
            cond = cond.replaced(dropped, self.denoiser.uncond or {})
        return Batch(x0, cond)

    def _check_cond_dropout(self) -> None:
        """Raise if conditions are to be dropped that the model's ``uncond`` cannot replace."""
        uncond = self.denoiser.uncond
        if not uncond:
            raise ValueError(
                "Trainer: cond_dropout must be 0 for a model without uncond, "
                f"got {self.cond_dropout:g}"
            )
        if isinstance(self.data, Tensor):
            first = self.cond.select(slice(0, 1))
        else:
            first = Conditions("Trainer", _collate([self.data[0]])[1], batch=1)
        # Shared conditions are the same for every sample, and need no replacement.
        names = [name for name, leaf in first.mapping.items() if not isinstance(leaf, Shared)]
        if not set(names) <= uncond.keys() <= first.mapping.keys():
            raise ValueError(
                f"Trainer: cond must have the names of the model's uncond {sorted(uncond)} with "
                f"cond_dropout, got {sorted(first.mapping)}"
            )
        # This call raises where the shapes or structures do not fit.
        first.replaced(torch.ones(1, dtype=torch.bool), uncond)

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the shuffled order of the data in an epoch."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            order = RandomStreams(self.seed, epoch).generator("order").permutation(self.count)
            self._shuffled = epoch, order
        return self._shuffled[1]

    def _check(self, x0: Any) -> None:
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
            raise TypeError(f"Trainer: data must be floating tensors, got {got}")
        check_tensor("data", x0, (len(x0), *self.denoiser.shape), x0.dtype, x0.device, "Trainer")
        if not torch.isfinite(x0).all():
            raise ValueError("Trainer: data must be finite, got NaN or infinity")


def _collate(items: list[Any]) -> tuple[Tensor, dict[str, Any]]:
    """Make x0 and the network's keyword arguments from items of a data set."""
    first: Any = items[0]
    if isinstance(first, tuple | list) and len(cast("Sized", first)) == 1:
        items = [item[0] for item in items]  # A TensorDataset gives 1-tuples.
    item_type = type(cast("object", items[0])).__name__
    if isinstance(items[0], Mapping):
        mappings = cast("list[Mapping[str, Any]]", items)
        if "x0" not in mappings[0]:
            raise ValueError(f'Trainer: data must have items with "x0", got {sorted(mappings[0])}')
        names = [name for name in mappings[0] if name != "x0"]
        cond = {name: _entries([m[name] for m in mappings]) for name in names}
        return torch.stack([torch.as_tensor(m["x0"]) for m in mappings]), cond
    if not isinstance(items[0], Tensor):
        raise TypeError(
            f'Trainer: data must have items that are tensors or mappings with "x0", got {item_type}'
        )
    return torch.stack(items), {}


def _entries(values: list[Any]) -> Any:
    """Collect one value per sample, and stack them if they are tensors of one shape.

    Tensors of different shapes, strings and the like stay a list with one entry per sample.
    """
    first: Any = values[0]
    if isinstance(first, Mapping):
        keys = cast("Mapping[str, Any]", first)
        return {key: _entries([value[key] for value in values]) for key in keys}
    if isinstance(first, tuple):
        return tuple(_entries(list(parts)) for parts in zip(*values, strict=True))
    if isinstance(first, (Tensor, np.ndarray)):
        tensors = [torch.as_tensor(value) for value in values]
        same = all(tensor.shape == tensors[0].shape for tensor in tensors)
        return torch.stack(tensors) if same else tensors
    return values
