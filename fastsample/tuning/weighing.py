"""A starting grid from the teacher: the times whose steps do least to the end of its run."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastsample.grids.grid import Grid
from fastsample.planning.cost_table import CostTable
from fastsample.profiling.adjoint import Adjoints
from fastsample.profiling.backward import adjoints_of
from fastsample.sampling.noise import Identity, make_identity
from fastsample.tuning.teacher import Teacher

ADJOINT = "adjoint"  # the grid's name among the starts


def adjoint_grid(teacher: Teacher, steps: int, seed: int) -> Grid:
    """The grid of `steps` DDIM steps that costs least by `fastsample.profiling.adjoint`.

    The vector-Jacobian products are those of DDIM steps between the teacher's times, at its states.

    Args:
        teacher: the fine run.
        steps: K.
        seed: of its noise.

    Raises:
        ValueError: a network that cannot be differentiated, or not to finite numbers.
        RuntimeError: another process has failed.
    """
    shares = teacher.shares
    found, failure = None, None
    try:
        found = _adjoints(teacher, seed)
    except Exception as error:
        failure = error
    # All processes meet here, whatever has become of them.
    failures = shares.sum(torch.tensor([float(found is None)]))
    if failure is not None:
        raise failure
    if failures[0] > 0:
        raise RuntimeError("tune: another process failed; see its message")
    assert found is not None
    arrays = (np.array(float(found.count)), found.steps, found.starts)
    count, *sums = (shares.sum(torch.from_numpy(array)).numpy() for array in arrays)
    total = Adjoints(int(count), *sums)
    denoiser = teacher.network.denoiser
    table = CostTable(
        denoiser.schedule,
        np.append(0.0, teacher.times),
        total.squared_errors(),
        objective="trajectory",
        dims=math.prod(denoiser.shape),
        start=total.start_errors(),
    )
    return table.best_grid(steps)


def _adjoints(teacher: Teacher, seed: int) -> Adjoints:
    """Of this process's samples."""
    network, shares = teacher.network, teacher.shares
    size = max(1, network.batch_size // 4)  # a graph holds several times what a call does
    total = Adjoints.empty(len(teacher.times))
    for first in range(0, shares.weighed.stop, size):
        part = slice(first, min(first + size, shares.weighed.stop))

        def estimate(x: Tensor, k: int, first: int = first) -> Tensor:
            return network.x0(x, k, first)

        index = torch.from_numpy(shares.index[part])
        device = network.denoiser.device
        identity = Identity(*make_identity("tune", seed, index, len(index), device))
        before = network.calls
        total = total + adjoints_of(
            "tune",
            estimate,
            teacher.times,
            (network.alpha, network.sigma),
            teacher.states[:, part],
            identity,
        )
        network.calls += 2 * (network.calls - before)  # a backward pass counts as two calls
    return total
