"""Functions that sum, gather and compare values over the processes of `torch.distributed`.

In a program of one process every function returns its argument or does nothing.
"""
# The parameters of torch.distributed's functions have no types.
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
    """Return (rank, number of processes): (0, 1) when only one process runs."""
    return (dist.get_rank(), dist.get_world_size()) if running() else (0, 1)


def summed(vector: Tensor, device: torch.device) -> Tensor:
    """Return the sum of a CPU tensor over all processes; with NCCL it is computed on `device`."""
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
    """Raised where another process failed; that process's own message says what went wrong."""


def meet(function: str, device: torch.device, *, failed: bool = False) -> None:
    """Wait until all processes call this function; raise if one of them passes ``failed=True``.

    Raises:
        OtherProcessFailedError: in the processes that did not fail themselves.
    """
    if not running():
        return
    failures = summed(torch.tensor([float(failed)], dtype=torch.float64, device="cpu"), device)
    if failures[0] > 0 and not failed:
        raise OtherProcessFailedError(f"{function}: another process failed; see its message")


@contextmanager
def failing_together(function: str, device: torch.device) -> Generator[None]:
    """Make the code inside the ``with`` block raise in all processes if it raises in one.

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
    everyone = torch.zeros(world, dtype=torch.float64, device="cpu")
    everyone[dist.get_rank()] = value
    values = sum_arrays(everyone, device)
    if not np.allclose(values, values[0], rtol=1e-12, atol=0.0):
        raise ValueError(
            f"{function}: {name} must be the same in every process, got {values.tolist()}"
        )


def sum_arrays(vector: Tensor, device: torch.device) -> npt.NDArray[np.float64]:
    """Return the sum of a CPU tensor over all processes as a NumPy array of its shape."""
    if dist.get_backend() == "nccl":
        vector = vector.to(device)
    dist.all_reduce(vector)
    return vector.cpu().numpy()


def running() -> bool:
    """Return whether `torch.distributed` is initialised with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
