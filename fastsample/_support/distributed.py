"""Sums and checks over the processes of `torch.distributed`.

In a program of one process every function returns its argument or does nothing.
"""
# torch.distributed has untyped parameters.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor


def process() -> tuple[int, int]:
    """Return (rank, number of processes), which is (0, 1) for a process that works alone."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def summed(vector: Tensor, device: torch.device) -> Tensor:
    """Return the sum of a CPU tensor over all processes; NCCL adds it up on `device`."""
    if not running():
        return vector
    return torch.from_numpy(sum_arrays(vector.contiguous(), device).reshape(vector.shape))


def gathered(x: Tensor) -> Tensor:
    """Concatenate the tensors `(n, ...)` of all processes along the first axis, in rank order.

    Gradients flow only to the part that this process contributed. When every process computes the
    same loss from the result, the caller must therefore sum the weights' gradients over processes.
    """
    if not running():
        return x
    parts = [x.new_empty(x.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


class OtherProcessFailedError(RuntimeError):
    """Another process raised an error; its own message says what went wrong."""


def meet(function: str, device: torch.device, *, failed: bool = False) -> None:
    """Wait for all processes, and raise if one of them comes here because it failed.

    Raises:
        OtherProcessFailedError: in the processes that did not fail themselves.
    """
    if not running():
        return
    failures = summed(torch.tensor([float(failed)], dtype=torch.float64), device)
    if failures[0] > 0 and not failed:
        raise OtherProcessFailedError(f"{function}: another process failed; see its message")


@contextmanager
def failing_together(function: str, device: torch.device) -> Generator[None]:
    """If the work inside fails in one process, it fails in all of them.

    Otherwise the other processes would wait for ever in their next collective call. They notice at
    their next `meet`, of which the work must hold one before each of its collective calls, and
    which this context holds at its end.

    Raises:
        OtherProcessFailedError: in the processes that did not fail themselves.
    """
    try:
        yield
    except OtherProcessFailedError:
        raise
    except Exception:
        meet(function, device, failed=True)
        raise
    meet(function, device)


def check_agreement(function: str, name: str, value: float, device: torch.device) -> None:
    """Raise ValueError unless `value` is the same in every process.

    Processes that start from different values would wait for each other or count data twice.
    """
    if not running():
        return
    world = dist.get_world_size()
    everyone = torch.zeros(world, dtype=torch.float64)
    everyone[dist.get_rank()] = value
    values = sum_arrays(everyone, device)
    if not np.allclose(values, values[0], rtol=1e-12, atol=0.0):
        raise ValueError(
            f"{function}: {name} must be the same in every process, got {values.tolist()}"
        )


def sum_arrays(vector: Tensor, device: torch.device) -> npt.NDArray[np.float64]:
    """Return the sum of a CPU tensor over all processes as an array."""
    if dist.get_backend() == "nccl":
        vector = vector.to(device)
    dist.all_reduce(vector)
    return vector.cpu().numpy()


def running() -> bool:
    """Return whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
