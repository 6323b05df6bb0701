"""Fixed points of a map of a batch of samples, each sample for itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

_MEMORY = 5
_RIDGE = 1e-10  # relative; differences of nearly converged iterates are nearly parallel


def fixed_point(
    g: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_calls: int
) -> Tensor:
    """Y with ``|g(y) - y| <= tolerance`` per sample, by Anderson acceleration.

    Walker and Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", algorithm AA with memory
    5. A sample stays at its first iterate within the tolerance, whatever the others of the batch
    still need; one that never gets there, at its best iterate.

    Args:
        g: the map, ``(B, *shape)`` to the same.
        start: first guess.
        tolerance: largest absolute residual over the elements of a sample.
        max_calls: calls of `g`, at least 1.
    """
    y, best = start, start
    least = torch.full((start.shape[0],), torch.inf, dtype=torch.float64, device=start.device)
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(max_calls):
        residual = (g(y) - y).flatten(1).double()
        size = residual.abs().amax(1)
        better = (size < least) & (least > tolerance)
        best = torch.where(better.reshape(-1, *[1] * (y.dim() - 1)), y, best)
        least = torch.where(better, size, least)
        if not (least > tolerance).any():
            break
        points = [*points[-_MEMORY:], y.flatten(1).double()]
        residuals = [*residuals[-_MEMORY:], residual]
        following = points[-1] + residual
        if len(points) > 1:
            moves, changes = (torch.stack(_differences(v), dim=2) for v in (points, residuals))
            gram = changes.mT @ changes
            ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(gram.dtype).tiny
            gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], device=gram.device)
            weights = torch.linalg.solve_ex(gram, changes.mT @ residual[:, :, None])[0]
            following = following - ((moves + changes) @ weights)[:, :, 0]
        y = following.to(y.dtype).reshape(y.shape)
    return best


def _differences(values: list[Tensor]) -> list[Tensor]:
    return [later - earlier for earlier, later in pairwise(values)]
