"""Work shared by the processes of `torch.distributed`; with one process, nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def process() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) for one that works alone."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def summed(vector: Tensor, device: torch.device) -> Tensor:
    """The sum of a CPU tensor over all processes."""
    if not running():
        return vector
    return torch.from_numpy(sum_arrays(vector.contiguous(), device).reshape(vector.shape))


def gathered(x: Tensor) -> Tensor:
    """The rows `(n, ...)` of all processes, in their order; gradients reach this process's own.

    Where every process computes the same function of them, gradients of weights are to be summed.
    """
    if not running():
        return x
    parts = [x.new_empty(x.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def together(function: str, work: Callable[[], Result], device: torch.device) -> Result:
    """The result of this process's work; if the work of one process fails, all of them raise.

    Without it the others would wait for the failed one for ever.

    Raises:
        RuntimeError: another process failed. The one that failed raises its own error.
    """
    if not running():
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    failures = summed(torch.tensor([float(failure is not None)], dtype=torch.float64), device)
    if failure is not None:
        raise failure
    if failures[0] > 0:
        raise RuntimeError(f"{function}: another process failed; see its message")
    return result  # type: ignore[return-value]


def check_agreement(function: str, name: str, value: float, device: torch.device) -> None:
    """Refuse processes that do not begin alike: each would wait for the others, or count twice."""
    if not running():
        return
    world = dist.get_world_size()
    everyone = torch.zeros(world, dtype=torch.float64)
    everyone[dist.get_rank()] = value
    found = sum_arrays(everyone, device)
    if not np.allclose(found, found[0], rtol=1e-12, atol=0.0):
        raise ValueError(
            f"{function}: {name} must be the same in every process, got {found.tolist()}"
        )


def sum_arrays(vector: Tensor, device: torch.device) -> npt.NDArray[np.float64]:
    """The sum over all processes."""
    if dist.get_backend() == "nccl":
        vector = vector.to(device)
    dist.all_reduce(vector)
    return vector.cpu().numpy()


def running() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
