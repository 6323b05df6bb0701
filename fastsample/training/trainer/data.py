"""Batches by their number: the same whether a run was interrupted or not, shared by processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastsample._support.tensors import check_tensor
from fastsample.denoiser.conditions import Conditions
from fastsample.denoiser.denoiser import Denoiser
from fastsample.training.randomness import Draws


class Batch(NamedTuple):
    """This process's part of an iteration's batch."""

    x0: Tensor
    """`(n, *shape)` on the model's device."""
    cond: Conditions
    """Keyword arguments of the network for these samples."""


class Feeding:
    """Batches of a data set in an order that the seed decides, without end.

    Epoch after epoch of random permutations, cut into batches; process r of w takes every w-th
    sample of a batch, from the r-th on.

    Args:
        denoiser: the model; data go to its device.
        data: tensor `(N, *shape)`, or a data set whose items are a tensor, or a mapping with "x0"
            and the network's keyword arguments.
        cond: with a tensor: keyword arguments of the network, N entries or a number each.
        dropped: share of samples whose condition is replaced by the model's ``uncond``, as
            classifier-free guidance is trained (Ho and Salimans 2022, arXiv:2207.12598).
        batch_size: of all processes together.
        seed: of the order.
        workers: that load items of a data set.
        process: (rank, number of processes).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor | Dataset[Any],
        cond: Mapping[str, Any] | None,
        *,
        dropped: float,
        batch_size: int,
        seed: int,
        workers: int,
        process: tuple[int, int],
    ) -> None:
        self.denoiser, self.data = denoiser, data
        self.dropped, self.batch_size, self.seed = dropped, batch_size, seed
        self.workers, self.process = workers, process
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise TypeError(
                "Trainer: data must be a tensor or a data set with a length and numbered items, "
                f"got {type(data).__name__}; a stream cannot be resumed where it was left"
            )
        if isinstance(data, Tensor) and data.dim() == 0:
            raise ValueError("Trainer: data must have shape (N, *shape), got a number")
        self.count = len(data)  # type: ignore[arg-type]
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
            self._check(self._collated([data[0]])[0])  # type: ignore[index]
        if batch_size % process[1]:
            raise ValueError(
                f"Trainer: batch_size must be a multiple of the {process[1]} processes, "
                f"got {batch_size}"
            )
        if dropped:
            self._check_absent(dropped)

    def numbers(self, iteration: int) -> npt.NDArray[np.int64]:
        """Data numbers of this process's part of a batch."""
        rank, world = self.process
        first = iteration * self.batch_size
        places = np.arange(first + rank, first + self.batch_size, world)
        found = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // self.count).tolist():
            here = places // self.count == epoch
            found[here] = self._permutation(epoch)[places[here] % self.count]
        return found

    def stream(self, first: int) -> Iterator[Batch]:
        """The batches from a number on."""
        if isinstance(self.data, Tensor):
            for iteration in itertools.count(first):  # without end
                numbers = self.numbers(iteration)
                x0 = self.data[torch.from_numpy(numbers).to(self.data.device)]
                yield self._batch(iteration, x0, self.cond.select(numbers))
        loader = DataLoader(
            cast("Dataset[Any]", self.data),
            batch_sampler=(self.numbers(i).tolist() for i in itertools.count(first)),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=self._collated,
        )
        for iteration, (x0, cond) in zip(itertools.count(first), loader, strict=False):
            yield self._batch(iteration, x0, Conditions("Trainer", cond, batch=len(x0)))

    def _batch(self, iteration: int, x0: Tensor, cond: Conditions) -> Batch:
        x0 = x0.to(self.denoiser.device)
        if not isinstance(self.data, Tensor):  # a tensor was looked at once
            self._check(x0)
        cond = cond.part(0, x0)
        if self.dropped and cond.mapping:
            rank, world = self.process
            everyone = Draws(self.seed, iteration).generator("condition").random(self.batch_size)
            lost = torch.from_numpy(everyone[rank::world] < self.dropped).to(x0.device)
            cond = cond.replaced(lost, self.denoiser.uncond or {})
        return Batch(x0, cond)

    def _check_absent(self, dropped: float) -> None:
        """Refuse to drop conditions that nothing stands for."""
        absent = self.denoiser.uncond
        if not absent:
            raise ValueError(
                f"Trainer: cond_dropout must be 0 for a model without uncond, got {dropped:g}"
            )
        if isinstance(self.data, Tensor):
            given = self.cond.select(slice(0, 1))
        else:
            given = Conditions("Trainer", self._collated([self.data[0]])[1], batch=1)  # type: ignore[index]
        if sorted(absent) != sorted(given.mapping):
            raise ValueError(
                f"Trainer: cond must have the names of the model's uncond {sorted(absent)} with "
                f"cond_dropout, got {sorted(given.mapping)}"
            )
        given.replaced(torch.ones(1, dtype=torch.bool), absent)  # refuses what cannot be mixed

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            order = Draws(self.seed, epoch).generator("order").permutation(self.count)
            self._order = epoch, order
        return self._order[1]

    def _check(self, x0: Any) -> None:
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
            raise TypeError(f"Trainer: data must be floating tensors, got {got}")
        check_tensor("data", x0, (len(x0), *self.denoiser.shape), x0.dtype, x0.device, "Trainer")
        if not torch.isfinite(x0).all():
            raise ValueError("Trainer: data must be finite, got NaN or infinity")

    @staticmethod
    def _collated(items: list[Any]) -> tuple[Tensor, dict[str, Any]]:
        """Items of a data set as x0 and the network's arguments."""
        if isinstance(items[0], tuple | list) and len(items[0]) == 1:  # a TensorDataset's
            items = [item[0] for item in items]
        if isinstance(items[0], Mapping):
            if "x0" not in items[0]:
                raise ValueError(f'Trainer: data must have items with "x0", got {sorted(items[0])}')
            names = [name for name in items[0] if name != "x0"]
            cond = {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in names}
            return torch.stack([torch.as_tensor(item["x0"]) for item in items]), cond
        if not isinstance(items[0], Tensor):
            raise TypeError(
                'Trainer: data must have items that are tensors or mappings with "x0", '
                f"got {type(items[0]).__name__}"
            )
        return torch.stack(items), {}
