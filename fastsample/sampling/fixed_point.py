"""Finds fixed points of a map on a batch of samples, for each sample separately."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor

_Solve: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_MEMORY = 5  # Each new iterate is extrapolated from this many earlier ones.


def fixed_point(
    g: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_calls: int
) -> Tensor:
    """Return y with ``|g(y) - y| <= tolerance`` for every sample, by Anderson acceleration.

    Walker and Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", with memory 5. The
    result of a sample is its first iterate within the tolerance, independent of how many more the
    rest of the batch needs; without one it is the iterate of the smallest residual. Holds ten
    tensors of the size of `start`, in float32 or float64.

    Args:
        g: the map, from ``(B, *shape)`` to the same shape.
        start: first guess ``(B, *shape)``.
        tolerance: largest absolute residual over the elements of a sample.
        max_calls: largest number of calls of `g`, at least 1.

    Returns:
        ``(B, *shape)``.
    """
    dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
    batch, column = start.shape[0], [1] * (start.dim() - 1)
    y, best = start, start
    least = torch.full((batch,), torch.inf, dtype=dtype, device=start.device)
    # These hold the last changes of y and of the residual; new ones overwrite the oldest.
    size = (batch, start[:1].numel() if batch else 0, _MEMORY)
    moves, changes = (torch.zeros(size, dtype=dtype, device=start.device) for _ in range(2))
    point, residual = start, start
    for call in range(max_calls):
        last_point, last_residual = point, residual
        point = y.to(dtype).flatten(1)
        residual = (g(y) - y).to(dtype).flatten(1)
        largest = residual.abs().amax(1) if residual.numel() else least.new_zeros(batch)
        better = (largest < least) & (least > tolerance)
        best = torch.where(better.reshape(-1, *column), y, best)
        least = torch.where(better, largest, least)
        if not (least > tolerance).any():
            break
        extrapolated = point + residual
        if call > 0:
            slot = (call - 1) % _MEMORY
            moves[:, :, slot] = point - last_point
            changes[:, :, slot] = residual - last_residual
            weights = _least_squares(changes[:, :, : min(call, _MEMORY)], residual)
            for i in range(weights.shape[1]):
                extrapolated = extrapolated - weights[:, i, None] * (
                    moves[:, :, i] + changes[:, :, i]
                )
        y = extrapolated.to(y.dtype).reshape(y.shape)
    return best


def _least_squares(columns: Tensor, target: Tensor) -> Tensor:
    """Return weights ``(B, n)`` that combine columns ``(B, N, n)`` nearest to a target ``(B, N)``.

    A ridge keeps the weights small where the columns, differences of nearly converged iterates,
    are nearly parallel.
    """
    gram = (columns.mT @ columns).double()
    right = (columns.mT @ target[:, :, None]).double()
    fraction = 1e-10 if columns.dtype == torch.float64 else 1e-7
    ridge = fraction * gram.diagonal(dim1=1, dim2=2).sum(1) + torch.finfo(gram.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], device=gram.device)
    solve = cast(_Solve, torch.linalg.solve_ex)  # pyright: ignore[reportUnknownMemberType]
    return solve(gram, right)[0][:, :, 0].to(columns.dtype)
