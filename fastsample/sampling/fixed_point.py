"""Fixed points of a map of a batch of samples, each sample for itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MEMORY = 5


def fixed_point(
    g: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_calls: int
) -> Tensor:
    """Y with ``|g(y) - y| <= tolerance`` per sample, by Anderson acceleration.

    Walker and Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", with memory 5. A sample
    stays at its first iterate within the tolerance, whatever the others of the batch still need;
    one that never gets there, at its best iterate. Keeps ten tensors of the size of `start`, in
    float32 or float64.

    Args:
        g: the map, ``(B, *shape)`` to the same.
        start: first guess.
        tolerance: largest absolute residual over the elements of a sample.
        max_calls: calls of `g`, at least 1.
    """
    kind = torch.float64 if start.dtype == torch.float64 else torch.float32
    batch, column = start.shape[0], [1] * (start.dim() - 1)
    y, best = start, start
    least = torch.full((batch,), torch.inf, dtype=kind, device=start.device)
    # The last moves of y and changes of the residual, oldest overwritten first.
    wide = (batch, start[:1].numel() if batch else 0, _MEMORY)
    moves, changes = (torch.zeros(wide, dtype=kind, device=start.device) for _ in range(2))
    point, residual = start, start
    for call in range(max_calls):
        last_point, last_residual = point, residual
        point = y.to(kind).flatten(1)
        residual = (g(y) - y).to(kind).flatten(1)
        size = residual.abs().amax(1) if residual.numel() else least.new_zeros(batch)
        better = (size < least) & (least > tolerance)
        best = torch.where(better.reshape(-1, *column), y, best)
        least = torch.where(better, size, least)
        if not (least > tolerance).any():
            break
        following = point + residual
        if call > 0:
            slot = (call - 1) % _MEMORY
            moves[:, :, slot] = point - last_point
            changes[:, :, slot] = residual - last_residual
            weights = _least_squares(changes[:, :, : min(call, _MEMORY)], residual)
            for i in range(weights.shape[1]):
                following = following - weights[:, i, None] * (moves[:, :, i] + changes[:, :, i])
        y = following.to(y.dtype).reshape(y.shape)
    return best


def _least_squares(columns: Tensor, target: Tensor) -> Tensor:
    """Weights ``(B, n)`` of the columns ``(B, N, n)`` nearest to a target ``(B, N)``.

    Differences of nearly converged iterates are nearly parallel: a ridge keeps the weights small.
    """
    gram = (columns.mT @ columns).double()
    right = (columns.mT @ target[:, :, None]).double()
    share = 1e-10 if columns.dtype == torch.float64 else 1e-7
    ridge = share * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(gram.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], device=gram.device)
    return torch.linalg.solve_ex(gram, right)[0][:, :, 0].to(columns.dtype)
