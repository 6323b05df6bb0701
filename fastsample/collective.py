"""Work shared by the processes of `torch.distributed`; with one process, nothing happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from fastsample.profiles import Profile

Batches: TypeAlias = Iterable[tuple[int, Tensor]]
Share: TypeAlias = Callable[[Batches], Iterator[tuple[int, Tensor | None]]]


def process() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if _running() else (0, 1)


def summed(vector: Tensor, device: torch.device) -> Tensor:
    """The sum of a CPU tensor over all processes."""
    if not _running():
        return vector
    return torch.from_numpy(_summed(vector.contiguous(), device).reshape(vector.shape))


def gathered(x: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, in their order; gradients reach this process's own.

    Where every process computes the same function of them, gradients of weights are to be summed.
    """
    if not _running():
        return x
    parts = [x.new_empty(x.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def share_of_batches() -> tuple[int, Share]:
    """(rank, function that leaves each round's batch of this process, None if it has none).

    Every process sees the same rounds, so that all of them meet in each reduction.
    """
    if not _running():
        return 0, lambda batches: iter(batches)
    rank, world = dist.get_rank(), dist.get_world_size()

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


def all_reduced(measure: Callable[[], Profile], empty: Profile, device: torch.device) -> Profile:
    """The sum of what every process measures; if one of them fails, all of them raise."""
    if not _running():
        return measure()
    part, failure = empty, None
    try:
        part = measure()
    except Exception as error:
        failure = error
    failures = _summed(torch.tensor([float(failure is not None)], dtype=torch.float64), device)
    if failure is not None:
        raise failure
    if failures[0] > 0:
        raise RuntimeError("profile: another process failed; see its message")
    # One order for all: a process without a batch has made its dictionary another way.
    arrays = dict(sorted(part.arrays().items()))
    flat = np.concatenate([np.atleast_1d(array).ravel() for array in arrays.values()])
    summed = _summed(torch.from_numpy(np.append(flat, float(part.count))), device)
    place, found = 0, {}
    for name, array in arrays.items():
        found[name] = summed[place : place + array.size].reshape(array.shape)
        place += array.size
    return replace(part.with_arrays(found), count=int(summed[-1]))


def check_agreement(function: str, name: str, value: float, device: torch.device) -> None:
    """Refuse processes that do not begin alike: each would wait for the others, or count twice."""
    if not _running():
        return
    world = dist.get_world_size()
    everyone = torch.zeros(world, dtype=torch.float64)
    everyone[dist.get_rank()] = value
    found = _summed(everyone, device)
    if not np.allclose(found, found[0], rtol=1e-12, atol=0.0):
        raise ValueError(
            f"{function}: {name} must be the same in every process, got {found.tolist()}"
        )


def _summed(vector: Tensor, device: torch.device) -> npt.NDArray[np.float64]:
    """The sum over all processes."""
    if dist.get_backend() == "nccl":
        vector = vector.to(device)
    dist.all_reduce(vector)
    return vector.cpu().numpy()


def _running() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
