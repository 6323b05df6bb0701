"""The class `History`: the earlier x0's of a batch in which every sample is at a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.ops.dtypes import history_dtype
from fastsample.plans.rows import HISTORY
from fastsample.sampling.mixed_rows import Mask, Numbers, numbers_of


class History:
    """The earlier x0 estimates that multistep rows look back at, for batches at mixed rows.

    It is made empty, and `Sampler.advance` and `SamplerStack.advance` fill it::

        history = fs.History()
        x = sampler.advance(x, row, seed=seed, history=history)

    A sample that is at row 0 begins anew: its earlier x0's are set to zero before the row. So a
    slot of the batch that is refilled with another sample needs nothing more. When samples move to
    other places in the batch, or their number changes, `select` moves their history along.

    It belongs to one batch, and one thread at a time may use it.

    Attributes:
        depth: `(B,)` how many earlier x0's each sample has, on the host.
    """

    def __init__(self) -> None:
        self.depth: Numbers = np.zeros(0, np.int64)
        self._x0s: list[Tensor] = []

    @property
    def x0s(self) -> tuple[Tensor, ...]:
        """Up to 4 tensors `(B, *shape)`, newest first, in float32 (float64 for float64 samples).

        Sample i has its own values in the first ``depth[i]`` of them, and zeros in the others. The
        tensors are not written to later.
        """
        return tuple(self._x0s)

    def __repr__(self) -> str:
        return f"History(depth={self.depth.tolist()})"

    def copy(self) -> History:
        """Return a history that keeps the values of now, for `fastsample.log_prob` later."""
        other = History()
        other.depth, other._x0s = np.array(self.depth), list(self._x0s)
        return other

    def select(self, samples: Sequence[int] | Tensor) -> History:
        """Return the history of the samples at these positions; -1 is a new sample without any.

        Args:
            samples: positions in the batch, in the order of the new batch: after sample 1 of three
                has finished and one was added, ``[0, 2, -1]``.

        Raises:
            TypeError: positions that are no integers.
            ValueError: positions outside the batch.
        """
        positions = numbers_of("select", "samples", samples, len(samples))
        size = len(self.depth)
        for position in positions[(positions < -1) | ((positions >= size) & bool(self._x0s))]:
            raise ValueError(f"select: samples must be in [-1, {size - 1}], got {position}")
        other = History()
        if not self._x0s:  # nothing has been kept so far
            return other
        new = positions < 0
        other.depth = np.where(new, 0, self.depth[np.maximum(positions, 0)] if size else 0)
        device = self._x0s[0].device
        index = torch.as_tensor(np.maximum(positions, 0), device=device)
        fresh = torch.as_tensor(np.flatnonzero(new), device=device)
        for x0 in self._x0s:
            if size:
                chosen = x0.index_select(0, index)
                other._x0s.append(chosen.index_fill(0, fresh, 0.0) if new.any() else chosen)
            else:
                other._x0s.append(x0.new_zeros(len(positions), *x0.shape[1:]))
        return other

    def begin(self, function: str, x: Tensor, count: int, fresh: Mask) -> None:
        """Make room for `count` x0's of each sample, and clear samples that begin anew.

        Args:
            function: the caller's name, for messages.
            x: samples `(B, *shape)`.
            count: the number of earlier x0's that the rows of any plan read.
            fresh: `(B,)` the samples at row 0.

        Raises:
            ValueError: samples of another number, shape, dtype or device than before.
        """
        if self._x0s:
            kept = self._x0s[0]
            if kept.shape != x.shape or kept.dtype != history_dtype(x) or kept.device != x.device:
                raise ValueError(
                    f"{function}: history must be of the batch {tuple(x.shape)} in "
                    f"{history_dtype(x)} on {x.device}, got {tuple(kept.shape)} in {kept.dtype} on "
                    f"{kept.device}; history.select follows samples to another batch"
                )
        else:
            self.depth = np.zeros(x.shape[0], np.int64)
        while len(self._x0s) < count:
            self._x0s.append(torch.zeros_like(x, dtype=history_dtype(x)))
        self._clear(fresh)

    def push(self, x0: Tensor, calls: Mask, returns: Mask) -> None:
        """Keep the x0 of the rows that called the network, and forget all where a row went back.

        Args:
            x0: `(B, *shape)`.
            calls: `(B,)` the samples whose row called the network.
            returns: `(B,)` the samples whose row returned to a noisier node.
        """
        if not self._x0s:  # no plan looks back
            return
        if calls.all():
            self._x0s = [x0, *self._x0s[:-1]]
        elif calls.any():
            mask = torch.as_tensor(calls, device=x0.device).reshape(-1, *[1] * (x0.dim() - 1))
            newer = [x0, *self._x0s[:-1]]
            self._x0s = [
                torch.where(mask, new, old) for new, old in zip(newer, self._x0s, strict=True)
            ]
        self.depth = np.minimum(self.depth + calls, len(self._x0s))
        self._clear(returns)

    def _clear(self, samples: Mask) -> None:
        """Set the x0's of some samples to zero: a coefficient of 0 times NaN would be NaN."""
        if not np.any(samples & (self.depth > 0)):
            return
        index = torch.as_tensor(np.flatnonzero(samples), device=self._x0s[0].device)
        self._x0s = [x0.index_fill(0, index, 0.0) for x0 in self._x0s]
        self.depth = np.where(samples, 0, self.depth)


def earlier_x0s(
    function: str, history: Any, x: Tensor, looks_back: Numbers
) -> tuple[Tensor | None, ...]:
    """Return h1 to h4 for rows that look back; None for those that no row reads.

    Args:
        function: the caller's name, for messages.
        history: a `History`, a sequence of tensors `(B, *shape)`, newest first, or None.
        x: samples `(B, *shape)`.
        looks_back: `(B,)` the number of earlier x0's that each sample's row reads.

    Raises:
        TypeError: a history that is neither.
        ValueError: a sample without the x0's that its row reads, or x0's of another batch.
    """
    most = int(looks_back.max(initial=0))
    if history is None:
        history = ()
    if isinstance(history, History):
        x0s, depth = history.x0s, history.depth
    elif isinstance(history, Sequence) and not isinstance(history, str):
        x0s: tuple[Any, ...] = tuple(history)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        depth = np.full(len(looks_back), len(x0s))
    else:
        raise TypeError(
            f"{function}: history must be a History or tensors, newest first, "
            f"got {type(history).__name__}"
        )
    if most and len(depth) != len(looks_back):
        raise ValueError(
            f"{function}: history must be of the batch of {len(looks_back)} samples, "
            f"got one of {len(depth)}"
        )
    for sample in np.flatnonzero(looks_back > depth) if most else ():
        raise ValueError(
            f"{function}: history must hold the {looks_back[sample]} earlier x0's that the row of "
            f"sample {sample} reads, got {depth[sample]}"
        )
    chosen: list[Tensor | None] = []
    for x0 in x0s[:most]:
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            got = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(
                f"{function}: history must hold tensors of shape {tuple(x.shape)}, got {got}"
            )
        chosen.append(x0)
    return (*chosen, *[None] * (len(HISTORY) - len(chosen)))
