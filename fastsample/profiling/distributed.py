"""A profile measured by several processes: their shares of the batches, and the sum of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample._support.distributed import process, running, sum_arrays, together
from fastsample.profiling.profile import Profile

Batches: TypeAlias = Iterable[tuple[int, Tensor]]
Share: TypeAlias = Callable[[Batches], Iterator[tuple[int, Tensor | None]]]


def share_of_batches() -> tuple[int, Share]:
    """(rank, function that leaves each round's batch of this process, None if it has none).

    Every process sees the same rounds, so that all of them meet in each reduction.
    """
    if not running():
        return 0, lambda batches: iter(batches)
    rank, world = process()

    def share(batches: Batches) -> Iterator[tuple[int, Tensor | None]]:
        mine: tuple[int, Tensor | None] = (0, None)
        number = -1
        for number, batch in enumerate(batches):
            if number % world == rank:
                mine = batch
            if number % world == world - 1:
                yield mine
                mine = (0, None)
        if (number + 1) % world:
            yield mine

    return rank, share


def all_reduced(measure: Callable[[], Profile], device: torch.device) -> Profile:
    """The sum of what every process measures; if one of them fails, all of them raise."""
    part = together("profile", measure, device)
    if not running():
        return part
    # One order for all: a process without a batch has made its dictionary another way.
    arrays = dict(sorted(part.arrays().items()))
    flat = np.concatenate([np.atleast_1d(array).ravel() for array in arrays.values()])
    summed = sum_arrays(torch.from_numpy(np.append(flat, float(part.count))), device)
    place, found = 0, {}
    for name, array in arrays.items():
        found[name] = summed[place : place + array.size].reshape(array.shape)
        place += array.size
    return replace(part.with_arrays(found), count=int(summed[-1]))
