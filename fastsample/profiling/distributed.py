"""Splits the measurement of a profile over processes: selects batches and adds the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastsample._support.checks import FloatArray
from fastsample._support.distributed import failing_together, process, running, sum_arrays
from fastsample.profiling.profile import Profile

Batches: TypeAlias = Iterable[tuple[int, Tensor]]
"""Pairs (position of the batch's first sample in the data, batch)."""

Selection: TypeAlias = Callable[[Batches], Iterator[tuple[int, Tensor | None]]]


def batch_selection() -> tuple[int, Selection]:
    """Return the rank of this process, and the function that selects its batches.

    With n processes every n batches are a round, and each process measures one batch of a round.
    The function yields once per round, with None where the last round has no batch for this
    process: all processes then meet in the reduction after each round.
    """
    if not running():
        return 0, lambda batches: iter(batches)
    rank, world = process()

    def select(batches: Batches) -> Iterator[tuple[int, Tensor | None]]:
        selected: tuple[int, Tensor | None] = (0, None)
        number = -1
        for number, batch in enumerate(batches):
            if number % world == rank:
                selected = batch
            if number % world == world - 1:
                yield selected
                selected = (0, None)
        if (number + 1) % world:
            yield selected

    return rank, select


def all_reduced(measure: Callable[[], Profile], device: torch.device) -> Profile:
    """Return the sum of the profiles of all processes; if one of them fails, all of them raise.

    Args:
        measure: measures this process's batch.
        device: where tensors are reduced.
    """
    with failing_together("profile", device):
        part = measure()
    if not running():
        return part
    # Sort by name, because a process without a batch fills its dictionary in another order.
    arrays = dict(sorted(part.arrays().items()))
    flat = np.concatenate([np.atleast_1d(array).ravel() for array in arrays.values()])
    summed = sum_arrays(torch.as_tensor(np.append(flat, float(part.count))), device)
    totals: dict[str, FloatArray] = {}
    offset = 0
    for name, array in arrays.items():
        totals[name] = np.reshape(summed[offset : offset + array.size], array.shape)
        offset += array.size
    return replace(part.with_arrays(totals), count=int(summed[-1]))
